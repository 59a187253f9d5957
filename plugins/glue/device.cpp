#include "device.h"

#include <cuda_runtime.h>

namespace trtkp::glue
{

int32_t currentCapability()
{
    int device = 0;
    int major = 0;
    int minor = 0;
    bool const isKnown = cudaGetDevice(&device) == cudaSuccess
        && cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess
        && cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess;
    if (!isKnown)
    {
        static_cast<void>(cudaGetLastError()); // the next launch must not report it
        return 0;
    }
    return major * 10 + minor;
}

} // namespace trtkp::glue

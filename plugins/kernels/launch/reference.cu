// T0.
#include "../reference.cuh"
#include "launch.h"

namespace trtkp
{

cudaError_t launchReference(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    int32_t constexpr kThreads = 256;
    int32_t const pixels = problem.batch * problem.outHeight * problem.outWidth;
    dim3 const grid((pixels - 1) / kThreads + 1, problem.rows + 1); // the last row writes the padded channels
    switch (type)
    {
    case DataType::kFLOAT32:
        return launchKernel(referenceKernel<float>, grid, dim3(kThreads), 0, stream, problem);
    case DataType::kFLOAT16:
        return launchKernel(referenceKernel<__half>, grid, dim3(kThreads), 0, stream, problem);
    case DataType::kBFLOAT16:
        return launchKernel(referenceKernel<__nv_bfloat16>, grid, dim3(kThreads), 0, stream, problem);
    }
    return cudaErrorInvalidValue;
}

} // namespace trtkp

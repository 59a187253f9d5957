#include "dynamic.cuh"
#include "launch.h"

namespace trtkp
{

cudaError_t launchDynamicReference(DynamicProblem const& problem, DataType type, cudaStream_t stream)
{
    int32_t constexpr kThreads = 256;
    int32_t const pixels = problem.conv.outHeight * problem.conv.outWidth;
    dim3 const grid((pixels - 1) / kThreads + 1, problem.conv.rows + 1, problem.samples);
    switch (type)
    {
    case DataType::kFLOAT32:
        return launchKernel(dynamicReferenceKernel<float>, grid, dim3(kThreads), 0, stream, problem);
    case DataType::kFLOAT16:
        return launchKernel(dynamicReferenceKernel<__half>, grid, dim3(kThreads), 0, stream, problem);
    case DataType::kBFLOAT16:
        return launchKernel(dynamicReferenceKernel<__nv_bfloat16>, grid, dim3(kThreads), 0, stream, problem);
    }
    return cudaErrorInvalidValue;
}

} // namespace trtkp

// The second kernel of split tactics: adds up the partial sums.
#include "../split.cuh"
#include "launch.h"

namespace trtkp
{

cudaError_t launchSplit(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    int32_t constexpr kThreads = 256;
    int64_t const pixels = problem.batch * problem.outHeight * problem.outWidth;
    int64_t const threads = pixels * ((problem.rows + 7) / 8);
    dim3 const grid(static_cast<uint32_t>((threads - 1) / kThreads + 1));
    switch (type)
    {
    case DataType::kFLOAT16:
        return launchKernel(splitKernel<__half>, grid, dim3(kThreads), 0, stream, problem);
    case DataType::kBFLOAT16:
        return launchKernel(splitKernel<__nv_bfloat16>, grid, dim3(kThreads), 0, stream, problem);
    case DataType::kFLOAT32:
        return launchKernel(splitKernel<float>, grid, dim3(kThreads), 0, stream, problem);
    }
    return cudaErrorInvalidValue;
}

} // namespace trtkp

// The dynamic pattern: the weights of all samples.
#include "../dynamic.cuh"
#include "launch.h"

namespace trtkp
{
namespace
{

template <typename T>
cudaError_t launchAggregateOf(DynamicProblem const& problem, cudaStream_t stream)
{
    int32_t constexpr kThreads = 256;
    int32_t constexpr kWidth = 16 / sizeof(T);
    bool const isWide = problem.conv.columns % kWidth == 0;
    int64_t const threads = static_cast<int64_t>(problem.conv.filters) * (problem.conv.columns / (isWide ? kWidth : 1));
    dim3 const grid(static_cast<uint32_t>((threads - 1) / kThreads + 1),
        (problem.samples + kAggregatedSamples - 1) / kAggregatedSamples);
    return isWide ? launchKernel(aggregateKernel<T, kWidth>, grid, dim3(kThreads), 0, stream, problem)
                  : launchKernel(aggregateKernel<T, 1>, grid, dim3(kThreads), 0, stream, problem);
}

} // namespace

cudaError_t launchAggregate(DynamicProblem const& problem, DataType type, cudaStream_t stream)
{
    switch (type)
    {
    case DataType::kFLOAT32:
        return launchAggregateOf<float>(problem, stream);
    case DataType::kFLOAT16:
        return launchAggregateOf<__half>(problem, stream);
    case DataType::kBFLOAT16:
        return launchAggregateOf<__nv_bfloat16>(problem, stream);
    }
    return cudaErrorInvalidValue;
}

} // namespace trtkp

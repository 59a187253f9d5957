// T3 for groups of a few filters: the direct convolution.
#include "../direct.cuh"
#include "launch.h"

namespace trtkp
{

namespace
{

template <typename T>
cudaError_t launchDirectKernel(ConvProblem const& problem, cudaStream_t stream)
{
    static_assert(sizeof(DirectShared) <= 48 * 1024, "more must be asked for");
    int64_t const blocks = directBlocks(problem);
    dim3 const grid(static_cast<uint32_t>(blocks));
    return launchKernel(directKernel<T>, grid, dim3(kDirectThreads), sizeof(DirectShared), stream, problem);
}

} // namespace

int64_t directBlocks(ConvProblem const& problem)
{
    int64_t const across = (problem.outWidth + kDirectSide - 1) / kDirectSide;
    int64_t const down = (problem.outHeight + kDirectSide - 1) / kDirectSide;
    return problem.batch * across * down * ((problem.rows + kDirectRows - 1) / kDirectRows);
}

bool directFits(ConvProblem const& problem, int32_t elementSize)
{
    int64_t const height = (kDirectRowsApart - 1) * static_cast<int64_t>(problem.strideH)
        + (problem.kernelRows - 1) * static_cast<int64_t>(problem.dilationH) + 1;
    int64_t const width = (kDirectSide - 1) * static_cast<int64_t>(problem.strideW)
        + (problem.kernelColumns - 1) * static_cast<int64_t>(problem.dilationW) + 1;
    int64_t constexpr kMost = kDirectTileBytes;
    return height <= kMost && width <= kMost && (height * width | 1) * 2 * elementSize <= kMost;
}

cudaError_t launchDirect(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    switch (type)
    {
    case DataType::kFLOAT32:
        return launchDirectKernel<float>(problem, stream);
    case DataType::kFLOAT16:
        return launchDirectKernel<__half>(problem, stream);
    case DataType::kBFLOAT16:
        return launchDirectKernel<__nv_bfloat16>(problem, stream);
    }
    return cudaErrorInvalidValue;
}

} // namespace trtkp

// The dynamic pattern with weights of every sample: the tiles of mma.cuh, and T0.
#include "../dynamic.cuh"
#include "tile.cuh"

namespace trtkp
{

namespace
{

template <typename Tile>
cudaError_t launchDynamic(DynamicProblem const& problem, DataType type, cudaStream_t stream)
{
    auto* const kernel = kernelOf16Bits(type, dynamicMmaKernel<Tile, __half>, dynamicMmaKernel<Tile, __nv_bfloat16>);
    return launchTiles<Tile, MmaShared<Tile>>(kernel, problem.conv, 1, problem.samples, problem, stream);
}

} // namespace

cudaError_t launchDynamic128x64(DynamicProblem const& problem, DataType type, cudaStream_t stream)
{
    return launchDynamic<MmaTile<128, 64, 64, 32, 3>>(problem, type, stream);
}

cudaError_t launchDynamic64x64(DynamicProblem const& problem, DataType type, cudaStream_t stream)
{
    return launchDynamic<MmaTile<64, 64, 32, 32, 4>>(problem, type, stream);
}

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

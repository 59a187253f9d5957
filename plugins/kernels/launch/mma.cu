// T1 with 32 columns a step: the tiles of mma.cuh.
#include "../mma.cuh"
#include "tile.cuh"

namespace trtkp
{

namespace
{

template <typename Tile>
cudaError_t launchMma(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    auto* const kernel = kernelOf16Bits(type, mmaKernel<Tile, __half>, mmaKernel<Tile, __nv_bfloat16>);
    return launchTiles<Tile, MmaShared<Tile>>(kernel, problem, stream);
}

} // namespace

// Eight warps; 64 KiB of stages, so two blocks fill an SM of sm_80 (164 KiB).
cudaError_t launchMma128x128(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    return launchMma<MmaTile<128, 128, 64, 32, 2>>(problem, type, stream);
}

// Four warps; 48 KiB of stages, three blocks on an SM of sm_80.
cudaError_t launchMma128x64(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    return launchMma<MmaTile<128, 64, 64, 32, 3>>(problem, type, stream);
}

// Four warps; 32 KiB of stages, for layers with few pixels.
cudaError_t launchMma64x64(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    return launchMma<MmaTile<64, 64, 32, 32, 4>>(problem, type, stream);
}

// Four warps; 24 KiB of stages, for filter groups of 32 and for the smallest layers.
cudaError_t launchMma64x32(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    return launchMma<MmaTile<64, 32, 32, 16, 5>>(problem, type, stream);
}

} // namespace trtkp

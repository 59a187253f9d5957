// Launches the tiles of mma.cuh.
#pragma once

#include "launch_tile.cuh"
#include "mma.cuh"

namespace trtkp
{

template <typename Tile>
cudaError_t launchMma(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    auto* const kernel = kernelOf16Bits(type, mmaKernel<Tile, __half>, mmaKernel<Tile, __nv_bfloat16>);
    return launchTiles<Tile, MmaShared<Tile>>(kernel, problem, stream);
}

} // namespace trtkp

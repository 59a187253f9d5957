// Launches the tiles of mma.cuh with weights of every sample.
#pragma once

#include "dynamic.cuh"
#include "launch_tile.cuh"

namespace trtkp
{

template <typename Tile>
cudaError_t launchDynamic(DynamicProblem const& problem, DataType type, cudaStream_t stream)
{
    auto* const kernel = kernelOf16Bits(type, dynamicMmaKernel<Tile, __half>, dynamicMmaKernel<Tile, __nv_bfloat16>);
    return launchTiles<Tile, MmaShared<Tile>>(kernel, problem.conv, 1, problem.samples, problem, stream);
}

} // namespace trtkp

// Launches the tiles of sparse.cuh.
#pragma once

#include "../sparse.cuh"
#include "tile.cuh"

namespace trtkp
{

template <typename Tile>
cudaError_t launchSparse(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    auto* const kernel = kernelOf16Bits(type, sparseKernel<Tile, __half>, sparseKernel<Tile, __nv_bfloat16>);
    return launchTiles<Tile, SparseShared<Tile>>(kernel, problem, stream);
}

} // namespace trtkp

// Launches the tiles of gemm.cuh.
#pragma once

#include "../block_loader.cuh"
#include "../gemm.cuh"
#include "../simt_sums.cuh"
#include "../single_loader.cuh"
#include "../tensor_sums.cuh"
#include "tile.cuh"

namespace trtkp
{

// 16-bit values on tensor cores.
template <typename Tile, template <typename, typename> class Loader>
cudaError_t launchGemm16(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    using Half = __half;
    using Bfloat16 = __nv_bfloat16;
    auto* const kernel = kernelOf16Bits(type, gemmKernel<Tile, Half, TensorSums<Tile, Half>, Loader<Tile, Half>>,
        gemmKernel<Tile, Bfloat16, TensorSums<Tile, Bfloat16>, Loader<Tile, Bfloat16>>);
    return launchTiles<Tile, GemmShared<Tile>>(kernel, problem, stream);
}

// float32, on tensor cores as TF32 or as it is.
template <typename Tile, typename Sums, template <typename, typename> class Loader>
cudaError_t launchGemm32(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    auto* const kernel = type == DataType::kFLOAT32 ? gemmKernel<Tile, float, Sums, Loader<Tile, float>> : nullptr;
    return launchTiles<Tile, GemmShared<Tile>>(kernel, problem, stream);
}

} // namespace trtkp

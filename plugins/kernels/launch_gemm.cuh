// One launcher per tile of gemm.cuh; each tile is compiled in a file of its own.
#pragma once

#include "block_loader.cuh"
#include "gemm.cuh"
#include "launch.h"
#include "simt_sums.cuh"
#include "single_loader.cuh"
#include "tensor_sums.cuh"

namespace trtkp
{

template <typename Tile, typename T, typename Sums, typename Loader>
cudaError_t launchGemmKernel(ConvProblem const& problem, cudaStream_t stream)
{
    size_t constexpr kSharedBytes = sizeof(GemmShared<Tile>);
    static_assert(kSharedBytes <= 99 * 1024, "sm_86, sm_89 and sm_120 give a block no more");
    auto* const kernel = gemmKernel<Tile, T, Sums, Loader>;
    // More than 48 KiB must be asked for; the attribute belongs to the current device, so it is set every time.
    cudaError_t const status
        = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kSharedBytes));
    if (status != cudaSuccess)
    {
        cudaGetLastError(); // the next launch must not report it again
        return status;
    }
    int32_t const pixels = problem.batch * problem.outHeight * problem.outWidth;
    dim3 const grid(((pixels + Tile::kM - 1) / Tile::kM) * ((problem.rows + Tile::kN - 1) / Tile::kN), problem.splits);
    return launchKernel(kernel, grid, dim3(Tile::kThreads), kSharedBytes, stream, problem);
}

// 16-bit values on tensor cores.
template <typename Tile, template <typename, typename> class Loader>
cudaError_t launchGemm16(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    switch (type)
    {
    case DataType::kFLOAT16:
        return launchGemmKernel<Tile, __half, TensorSums<Tile, __half>, Loader<Tile, __half>>(problem, stream);
    case DataType::kBFLOAT16:
        return launchGemmKernel<Tile, __nv_bfloat16, TensorSums<Tile, __nv_bfloat16>, Loader<Tile, __nv_bfloat16>>(
            problem, stream);
    case DataType::kFLOAT32:
        break;
    }
    return cudaErrorInvalidValue;
}

// float32, on tensor cores as TF32 or as it is.
template <typename Tile, typename Sums, template <typename, typename> class Loader>
cudaError_t launchGemm32(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    return type == DataType::kFLOAT32 ? launchGemmKernel<Tile, float, Sums, Loader<Tile, float>>(problem, stream)
                                      : cudaErrorInvalidValue;
}

} // namespace trtkp

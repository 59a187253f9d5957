// How the kernels of tiles are launched.
#pragma once

#include "../device.cuh"
#include "launch.h"

namespace trtkp
{

// The kernel for a type of 16 bits; null for another.
template <typename Kernel>
Kernel* kernelOf16Bits(DataType type, Kernel* float16, Kernel* bfloat16)
{
    return type == DataType::kFLOAT16 ? float16 : type == DataType::kBFLOAT16 ? bfloat16 : nullptr;
}

// A block for every tile of a convolution, `splits` and `samples` times; an error for a null kernel.
template <typename Tile, typename Shared, typename Problem>
cudaError_t launchTiles(void (*kernel)(Problem), ConvProblem const& conv, int32_t splits, int32_t samples,
    Problem const& problem, cudaStream_t stream)
{
    static_assert(sizeof(Shared) <= 99 * 1024, "sm_86, sm_89 and sm_120 give a block no more");
    if (kernel == nullptr)
    {
        return cudaErrorInvalidValue;
    }
    // More than 48 KiB must be asked for; the attribute belongs to the current device, so it is set every time.
    cudaError_t const status
        = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(sizeof(Shared)));
    if (status != cudaSuccess)
    {
        cudaGetLastError(); // the next launch must not report it again
        return status;
    }
    int32_t const pixels = conv.batch * conv.outHeight * conv.outWidth;
    int32_t const tiles = ((pixels + Tile::kM - 1) / Tile::kM) * ((conv.rows + Tile::kN - 1) / Tile::kN);
    return launchKernel(kernel, dim3(tiles, splits, samples), dim3(Tile::kThreads), sizeof(Shared), stream, problem);
}

template <typename Tile, typename Shared>
cudaError_t launchTiles(void (*kernel)(ConvProblem), ConvProblem const& problem, cudaStream_t stream)
{
    return launchTiles<Tile, Shared>(kernel, problem, problem.splits, 1, problem, stream);
}

} // namespace trtkp

// One launcher per tile of T1 with weights per sample; each tile is compiled in a file of its own.
#pragma once

#include "dynamic.cuh"
#include "launch.h"

namespace trtkp
{

template <typename Tile, typename T>
cudaError_t launchDynamicKernel(DynamicProblem const& problem, cudaStream_t stream)
{
    size_t constexpr kSharedBytes = sizeof(MmaShared<Tile>);
    static_assert(kSharedBytes <= 99 * 1024, "sm_86, sm_89 and sm_120 give a block no more");
    cudaError_t const status = cudaFuncSetAttribute(
        dynamicMmaKernel<Tile, T>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kSharedBytes));
    if (status != cudaSuccess)
    {
        cudaGetLastError(); // the next launch must not report it again
        return status;
    }
    ConvProblem const& conv = problem.conv;
    int32_t const pixels = conv.outHeight * conv.outWidth;
    uint32_t const tiles = ((pixels + Tile::kM - 1) / Tile::kM) * ((conv.rows + Tile::kN - 1) / Tile::kN);
    dim3 const grid(tiles, 1, problem.samples);
    return launchKernel(dynamicMmaKernel<Tile, T>, grid, dim3(Tile::kThreads), kSharedBytes, stream, problem);
}

template <typename Tile>
cudaError_t launchDynamic(DynamicProblem const& problem, DataType type, cudaStream_t stream)
{
    switch (type)
    {
    case DataType::kFLOAT16:
        return launchDynamicKernel<Tile, __half>(problem, stream);
    case DataType::kBFLOAT16:
        return launchDynamicKernel<Tile, __nv_bfloat16>(problem, stream);
    case DataType::kFLOAT32:
        break;
    }
    return cudaErrorInvalidValue;
}

} // namespace trtkp

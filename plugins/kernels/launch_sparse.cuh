// One launcher per tile; each tile is compiled in a file of its own.
#pragma once

#include "launch.h"
#include "sparse.cuh"

namespace trtkp
{

template <typename Tile, typename T>
cudaError_t launchSparseKernel(ConvProblem const& problem, cudaStream_t stream)
{
    size_t constexpr kSharedBytes = sizeof(SparseShared<Tile>);
    static_assert(kSharedBytes <= 99 * 1024, "sm_86, sm_89 and sm_120 give a block no more");
    // More than 48 KiB must be asked for; the attribute belongs to the current device, so it is set every time.
    cudaError_t const status = cudaFuncSetAttribute(
        sparseKernel<Tile, T>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kSharedBytes));
    if (status != cudaSuccess)
    {
        cudaGetLastError(); // the next launch must not report it again
        return status;
    }
    int32_t const pixels = problem.batch * problem.outHeight * problem.outWidth;
    dim3 const grid(((pixels + Tile::kM - 1) / Tile::kM) * ((problem.rows + Tile::kN - 1) / Tile::kN), problem.splits);
    return launchKernel(sparseKernel<Tile, T>, grid, dim3(Tile::kThreads), kSharedBytes, stream, problem);
}

template <typename Tile>
cudaError_t launchSparse(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    switch (type)
    {
    case DataType::kFLOAT16:
        return launchSparseKernel<Tile, __half>(problem, stream);
    case DataType::kBFLOAT16:
        return launchSparseKernel<Tile, __nv_bfloat16>(problem, stream);
    case DataType::kFLOAT32:
        break;
    }
    return cudaErrorInvalidValue;
}

} // namespace trtkp

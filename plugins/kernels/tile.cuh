// What the tiled kernels share: the pixels, rows and steps of a block, its tables, runs of rows of one filter group,
// and the stores of staged sums.
#pragma once

#include "device.cuh"
#include "problem.h"
#include "store.cuh"

namespace trtkp
{

// The kM pixels x kN packed rows of a thread block, and where the warp's part of them begins.
template <typename Tile>
struct TilePlace
{
    int32_t firstPixel;
    int32_t firstRow;
    int32_t rows; // number of rows of the tile that exist
    bool hasLastRows;
    int32_t warpPixel, warpRow; // relative to firstPixel and firstRow

    __device__ __forceinline__ explicit TilePlace(ConvProblem const& problem)
    {
        // Consecutive blocks read the same pixels, so that these come from the L2 cache.
        int32_t const rowTiles = (problem.rows + Tile::kN - 1) / Tile::kN;
        int32_t const rowTile = static_cast<int32_t>(blockIdx.x) % rowTiles;
        int32_t const warp = threadIdx.x / 32;
        firstPixel = static_cast<int32_t>(blockIdx.x) / rowTiles * Tile::kM;
        firstRow = rowTile * Tile::kN;
        rows = problem.rows - firstRow < Tile::kN ? problem.rows - firstRow : Tile::kN;
        hasLastRows = rowTile == rowTiles - 1;
        warpPixel = warp / Tile::kWarpsN * Tile::kWarpM;
        warpRow = warp % Tile::kWarpsN * Tile::kWarpN;
    }
};

// The block's part of the K loop (blockIdx.y, split.cuh).
struct Steps
{
    int32_t first;
    int32_t count;

    __device__ __forceinline__ Steps(ConvProblem const& problem, int32_t allSteps)
    {
        int32_t const split = blockIdx.y;
        first = allSteps * split / problem.splits;
        count = allSteps * (split + 1) / problem.splits - first;
    }
};

struct TapOffset
{
    int32_t h, w; // offset from the pixel under tap 0
    int32_t at;   // the same offset in elements of x
};

// Fills the table of the taps' offsets. The barriers of fillRows make it visible to all threads.
template <typename Tile, typename Shared>
__device__ __forceinline__ void fillTaps(ConvProblem const& problem, Shared& shared)
{
    for (int32_t t = threadIdx.x; t < problem.kernelRows * problem.kernelColumns; t += Tile::kThreads)
    {
        int32_t const h = t / problem.kernelColumns * problem.dilationH;
        int32_t const w = t % problem.kernelColumns * problem.dilationW;
        shared.taps[t] = {h, w, (h * problem.width + w) * problem.xPitch};
    }
}

// Fills the tables of the tile's filter groups and filters, and of the groups of eight rows that have eight consecutive
// filters.
template <typename Tile, typename Shared>
__device__ __forceinline__ void fillRows(ConvProblem const& problem, Shared& shared, int32_t firstRow)
{
    for (int32_t i = threadIdx.x; i < Tile::kN; i += Tile::kThreads)
    {
        bool const exists = firstRow + i < problem.rows;
        int32_t const filter = exists ? problem.rowFilter[firstRow + i] : -1;
        shared.rowGroup[i] = exists ? problem.rowGroup[firstRow + i] : -1;
        shared.rowFilter[i] = filter < problem.filters ? filter : -1;
    }
    __syncthreads();
    for (int32_t i = threadIdx.x; i < Tile::kN / 8; i += Tile::kThreads)
    {
        shared.chunkFilter[i] = firstOfEight(problem, shared.rowFilter + i * 8);
    }
    __syncthreads();
}

// The end of the run of rows with the same group that begins at `begin`. Groups ascend, so it is a binary search.
__device__ __forceinline__ int32_t endOfGroup(int32_t const* rowGroup, int32_t begin, int32_t rows)
{
    int32_t const group = rowGroup[begin];
    if (rowGroup[rows - 1] == group)
    {
        return rows;
    }
    int32_t low = begin + 1;
    int32_t high = rows;
    while (low < high)
    {
        int32_t const middle = (low + high) / 2;
        bool const same = rowGroup[middle] == group;
        low = same ? middle + 1 : low;
        high = same ? high : middle;
    }
    return low;
}

// The rows [begin, end) of a tile, which belong to one filter group.
struct RowRun
{
    int32_t begin, end;
    int32_t group;
    int32_t firstChannel; // first channel of their ONNX group
};

// Moves on to the next run that has a filter. Returns false after the last one.
template <typename Shared>
__device__ __forceinline__ bool nextRun(ConvProblem const& problem, Shared const& shared, int32_t rows, RowRun& run)
{
    TRTKP_NO_UNROLL
    while (run.end < rows)
    {
        run.begin = run.end;
        run.end = endOfGroup(shared.rowGroup, run.begin, rows);
        run.group = shared.rowGroup[run.begin];
        int32_t const filter = shared.rowFilter[run.begin];
        // Padding rows come last in their group, so a run that begins with one has no other rows.
        if (filter >= 0 && run.group >= 0 && run.group < problem.listGroups)
        {
            run.firstChannel = filter / (problem.filters / problem.groups) * problem.channels;
            return true;
        }
    }
    return false;
}

// Stores the staged sums of kPixels pixels of a warp. A lane stores eight rows of one pixel at a time.
template <typename Tile, typename T, int32_t kPixels, typename Shared>
__device__ __forceinline__ void storeStaged(ConvProblem const& problem, Shared const& shared, float const* staging,
    int32_t firstPixel, int32_t firstRow, int32_t warpRow)
{
    constexpr int32_t kChunksPerRow = Tile::kWarpN / 8;
    int32_t const pixels = problem.batch * problem.outHeight * problem.outWidth;
    TRTKP_NO_UNROLL
    for (int32_t task = threadIdx.x % 32; task < kPixels * kChunksPerRow; task += 32)
    {
        int32_t const row = warpRow + task % kChunksPerRow * 8;
        int32_t const pixel = firstPixel + task / kChunksPerRow;
        if (pixel < pixels)
        {
            float const* const from = staging + task / kChunksPerRow * Tile::kStagingPitch + task % kChunksPerRow * 8;
            if (problem.splits > 1)
            {
                storePartial(problem, from, pixel, firstRow + row);
            }
            else
            {
                storeChunk<T>(problem, from, pixel, shared.chunkFilter[row / 8], shared.rowFilter + row);
            }
        }
    }
}

// Sets the channels past F to 0, one pixel per thread.
template <typename Tile, typename T>
__device__ __forceinline__ void clearPaddedChannelsOfTile(ConvProblem const& problem, int32_t firstPixel)
{
    int32_t const pixels = problem.batch * problem.outHeight * problem.outWidth;
    for (int32_t pixel = firstPixel + threadIdx.x; pixel < pixels && pixel < firstPixel + Tile::kM;
        pixel += Tile::kThreads)
    {
        clearPaddedChannels<T>(problem, pixel);
    }
}

} // namespace trtkp

// What the kernels of tiles share (mma.cuh, gemm.cuh, sparse.cuh): which pixels, rows and steps are a block's, its
// tables, runs of rows of one filter group, the copies of a thread, and the way of staged sums to memory.
#pragma once

#include "device.cuh"
#include "problem.h"
#include "ptx.cuh"
#include "store.cuh"

namespace trtkp
{

// A thread block's kM pixels by kN packed rows, and where its warp's part of them begins.
template <typename Tile>
struct TilePlace
{
    int32_t firstPixel;
    int32_t firstRow;
    int32_t rows; // that exist
    bool hasLastRows;
    int32_t warpPixel, warpRow; // from the first ones

    __device__ __forceinline__ explicit TilePlace(ConvProblem const& problem)
    {
        // Blocks that read the same pixels follow each other, so that the pixels come from the L2 cache.
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

// The part of a K loop that is the block's (blockIdx.y, split.cuh).
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
    int32_t h, w; // from the pixel of tap 0
    int32_t at;   // the same in elements of x
};

// The offsets of the taps; the barriers of fillRows show them.
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

// Row groups and filters of the tile, and which eights of rows are eight filters in a row.
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

// The end of the run of equal groups that begins at `begin`; groups ascend.
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
    int32_t firstChannel; // of their ONNX group
};

// Turns to the next run that has a filter; false past the last.
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
        // Padding rows stand last in their group: a run that begins with one holds nothing else.
        if (filter >= 0 && run.group >= 0 && run.group < problem.listGroups)
        {
            run.firstChannel = filter / (problem.filters / problem.groups) * problem.channels;
            return true;
        }
    }
    return false;
}

// The pixels that a thread gathers for: kPasses of them, kApart apart.
template <int32_t kPasses, int32_t kApart>
class GatheredPixels
{
public:
    __device__ __forceinline__ GatheredPixels(ConvProblem const& problem, int32_t first)
        : mProblem{problem}
    {
        int32_t const pixels = problem.batch * problem.outHeight * problem.outWidth;
        TRTKP_UNROLL
        for (int32_t i = 0; i < kPasses; ++i)
        {
            int32_t const pixel = first + i * kApart;
            int32_t const q = pixel % problem.outWidth;
            int32_t const p = pixel / problem.outWidth % problem.outHeight;
            int32_t const n = pixel / problem.outWidth / problem.outHeight;
            // A pixel past the last is below the image at every tap.
            bool const exists = pixel < pixels;
            mH[i] = exists ? p * problem.strideH - problem.padTop : problem.height;
            mW[i] = q * problem.strideW - problem.padLeft;
            mAt[i] = exists ? ((n * problem.height + mH[i]) * problem.width + mW[i]) * problem.xPitch : 0;
        }
    }

    __device__ __forceinline__ bool isInside(int32_t pass, TapOffset const& tap) const
    {
        return static_cast<uint32_t>(mH[pass] + tap.h) < static_cast<uint32_t>(mProblem.height)
            && static_cast<uint32_t>(mW[pass] + tap.w) < static_cast<uint32_t>(mProblem.width);
    }

    // Where tap 0 of a pixel stands, in elements of x.
    __device__ __forceinline__ int32_t at(int32_t pass) const
    {
        return mAt[pass];
    }

    // Issues the copies of eight channels of each pixel, to rows of kRow values. A copy of no bytes reads nothing,
    // wherever it points.
    template <int32_t kRow, typename T>
    __device__ __forceinline__ void copyChunk(T* to, TapOffset const& tap, int32_t firstChannel, int32_t channel) const
    {
        int32_t const left = mProblem.channels - channel;
        int32_t const bytes = left >= 8 ? 16 : (left > 0 ? 2 * left : 0);
        int32_t const from = tap.at + firstChannel + channel;
        T const* const x = static_cast<T const*>(mProblem.x);
        TRTKP_UNROLL
        for (int32_t i = 0; i < kPasses; ++i)
        {
            ptx::copyAsync16(to + i * kApart * kRow, x + (mAt[i] + from), isInside(i, tap) ? bytes : 0);
        }
    }

private:
    ConvProblem const& mProblem;
    int32_t mH[kPasses], mW[kPasses], mAt[kPasses];
};

// The rows of weight that a thread copies of a tile: kPasses of them, kApart apart; those of other runs are zeros.
template <int32_t kPasses, int32_t kApart>
class CopiedRows
{
public:
    // The thread's first row, and the values that a row has in memory.
    __device__ __forceinline__ void select(RowRun const& run, int32_t row, int32_t firstRow, int32_t rowValues)
    {
        TRTKP_UNROLL
        for (int32_t i = 0; i < kPasses; ++i)
        {
            int32_t const mine = row + i * kApart;
            bool const isSelected = mine >= run.begin && mine < run.end;
            mBytes[i] = isSelected ? 16 : 0;
            mAt[i] = isSelected ? (firstRow + mine) * rowValues : 0;
        }
    }

    // Issues the copies of eight values of each row, to rows of kRow values; zeros where there are none.
    template <int32_t kRow, typename T>
    __device__ __forceinline__ void copyChunk(T* to, T const* weight, bool exists) const
    {
        TRTKP_UNROLL
        for (int32_t i = 0; i < kPasses; ++i)
        {
            ptx::copyAsync16(to + i * kApart * kRow, weight + mAt[i], exists ? mBytes[i] : 0);
        }
    }

private:
    int32_t mBytes[kPasses], mAt[kPasses];
};

// Staged sums of kPixels pixels of a warp to memory, eight rows of a pixel a lane.
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

// The last tile of rows clears the channels past F, one pixel a thread.
template <typename Tile, typename T>
__device__ __forceinline__ void clearPaddedChannelsOfTile(ConvProblem const& problem, TilePlace<Tile> const& place)
{
    if (!place.hasLastRows || problem.splits > 1)
    {
        return;
    }
    int32_t const pixels = problem.batch * problem.outHeight * problem.outWidth;
    for (int32_t pixel = place.firstPixel + threadIdx.x; pixel < pixels && pixel < place.firstPixel + Tile::kM;
        pixel += Tile::kThreads)
    {
        clearPaddedChannels<T>(problem, pixel);
    }
}

} // namespace trtkp

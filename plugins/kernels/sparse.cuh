// T4: 2:4 weights inside lists on mma.sp (sm_80 and later), for fp16 and bf16 with fp32 accumulation.
//
// A block computes kM pixels x kN packed rows, with 64 columns of the list per step. The filters are the sparse
// operand: 32 stored values of a row, and the metadata word of every lane as the instruction reads it. Both are copied
// as they were packed. The pixels are the dense operand. They are gathered as in T1, eight channels at a time, if lists
// come in blocks of 8. Otherwise they are gathered one by one through registers, which pays if a gathered pixel serves
// 64 rows or more.
//
// The warps hold sums as rows x pixels, and transpose them to pixels x rows in shared memory. Filter groups, splits and
// stores are shared with T1. TilePlace, nextRun and T1's loader are not: with them a register of sparse_128x128 spills.
#pragma once

#include "chunk_cursor.cuh"
#include "device.cuh"
#include "mma.cuh"
#include "problem.h"
#include "ptx_sparse.cuh"
#include "reference.cuh"
#include "tile.cuh"

namespace trtkp
{

// kM pixels x kN rows, divided among warps of kWarpM x kWarpN. kSingles gathers channel by channel.
template <int32_t kM_, int32_t kN_, int32_t kWarpM_, int32_t kWarpN_, int32_t kStages_, int32_t kBlocksPerSm_,
    bool kSingles_>
struct SparseTile
{
    static constexpr int32_t kM = kM_;
    static constexpr int32_t kN = kN_;
    static constexpr int32_t kK = 64;
    static constexpr int32_t kStored = kK / 2;
    static constexpr int32_t kStages = kStages_;
    static constexpr int32_t kWarpM = kWarpM_;
    static constexpr int32_t kWarpN = kWarpN_;
    static constexpr int32_t kWarpsN = kN / kWarpN;
    static constexpr int32_t kWarps = kM / kWarpM * kWarpsN;
    static constexpr int32_t kThreads = 32 * kWarps;
    static constexpr int32_t kBlocksPerSm = kBlocksPerSm_;
    static constexpr bool kSingles = kSingles_;

    static constexpr int32_t kChunksX = kK / 8;
    static constexpr int32_t kPixelsPerPass = kThreads / kChunksX;
    static constexpr int32_t kPassesX = kM / kPixelsPerPass;
    static constexpr int32_t kChunksW = kStored / 8;
    static constexpr int32_t kRowsPerPass = kThreads / kChunksW;
    static constexpr int32_t kPassesW = kN / kRowsPerPass;
    static constexpr int32_t kMetadataWords = kN / 16 * 32;
    static constexpr int32_t kStageElements = kM * kK + kN * kStored + kMetadataWords * 2;

    // Sums pass through shared memory, 8 pixels at a time. A pitch of 4 more than a multiple of 32 spreads the pixels
    // and rows that a warp writes at once over all banks, and keeps groups of eight rows aligned.
    static constexpr int32_t kStagingPitch = kWarpN + 4;
    static constexpr int32_t kStagingFloats = kWarps * 8 * kStagingPitch;

    static constexpr int32_t kMaxTaps = 64;

    static_assert(kPixelsPerPass % 8 == 0 && kRowsPerPass % 8 == 0, "a thread's rows must share one swizzle");
    static_assert(kM % kPixelsPerPass == 0 && kN % kRowsPerPass == 0, "copies come in whole passes");
    static_assert(kMetadataWords / 4 <= kThreads, "a thread copies metadata at most once");
    static_assert(kWarpM % 8 == 0 && kWarpN % 32 == 0, "a chunk of eight rows for every lane");
};

template <typename Tile>
struct SparseShared
{
    union
    {
        alignas(128) uint16_t stages[Tile::kStages][Tile::kStageElements]; // pixels, weights, metadata
        float staging[Tile::kStagingFloats];
    };
    int32_t rowGroup[Tile::kN];
    int32_t rowFilter[Tile::kN];       // -1 for padding rows and past the last row
    int32_t chunkFilter[Tile::kN / 8]; // first of eight consecutive, aligned filters, or -1
    TapOffset taps[Tile::kMaxTaps];
    TapOffset columns[2][Tile::kSingles ? Tile::kK : 1]; // for single channels: those of this step and of the next
};

// The place of chunk `chunk` of the 128-byte row of a pixel, in elements. The same chunk of eight rows covers all
// banks.
__device__ __forceinline__ int32_t swizzledPixel(int32_t pixel, int32_t chunk)
{
    return pixel * 64 + ((chunk ^ (pixel & 7)) << 3);
}

// The copies of one thread: some pixels of x, some rows of weight, and 16 bytes of metadata.
template <typename Tile, typename T>
class SparseLoader
{
public:
    __device__ __forceinline__ SparseLoader(
        ConvProblem const& problem, SparseShared<Tile>& shared, int32_t firstPixel, int32_t firstRow)
        : mProblem{problem}
        , mShared{shared}
        , mFirstRow{firstRow}
        , mSteps{problem.storedColumns / Tile::kStored}
        , mChunk{static_cast<int32_t>(threadIdx.x) % Tile::kChunksX}
        , mPixel{static_cast<int32_t>(threadIdx.x) / Tile::kChunksX}
    {
        int32_t const pixels = problem.batch * problem.outHeight * problem.outWidth;
        TRTKP_UNROLL
        for (int32_t i = 0; i < Tile::kPassesX; ++i)
        {
            int32_t const pixel = firstPixel + mPixel + i * Tile::kPixelsPerPass;
            int32_t const q = pixel % problem.outWidth;
            int32_t const p = pixel / problem.outWidth % problem.outHeight;
            int32_t const n = pixel / problem.outWidth / problem.outHeight;
            // A pixel past the last one is placed below the image, so that it is outside at every tap.
            bool const exists = pixel < pixels;
            mH[i] = exists ? p * problem.strideH - problem.padTop : problem.height;
            mW[i] = q * problem.strideW - problem.padLeft;
            mAt[i] = exists ? ((n * problem.height + mH[i]) * problem.width + mW[i]) * problem.xPitch : 0;
        }
        // Metadata has whole blocks of 16 rows, and every word is valid. Rows past the last block use the last one.
        int32_t const lastBlock = (problem.rows - 1) / 16;
        int32_t const block = firstRow / 16 + static_cast<int32_t>(threadIdx.x) / 8;
        mAtMetadata = (block < lastBlock ? block : lastBlock) * mSteps * 32 + static_cast<int32_t>(threadIdx.x) % 8 * 4;
    }

    // Selects the rows [begin, end) of the tile, which belong to one filter group.
    __device__ __forceinline__ void select(int32_t begin, int32_t end)
    {
        mGroup = mShared.rowGroup[begin];
        mFirstChannel = mShared.rowFilter[begin] / (mProblem.filters / mProblem.groups) * mProblem.channels;
        TRTKP_UNROLL
        for (int32_t i = 0; i < Tile::kPassesW; ++i)
        {
            int32_t const row = static_cast<int32_t>(threadIdx.x) / Tile::kChunksW + i * Tile::kRowsPerPass;
            bool const isSelected = row >= begin && row < end;
            mBytesW[i] = isSelected ? 16 : 0;
            mAtW[i] = isSelected ? (mFirstRow + row) * mProblem.storedColumns : 0;
        }
    }

    // Issues the copies of weights and metadata of a step.
    __device__ __forceinline__ void loadWeights(int32_t stage, int32_t step)
    {
        int32_t const chunk = static_cast<int32_t>(threadIdx.x) % Tile::kChunksW;
        int32_t const row = static_cast<int32_t>(threadIdx.x) / Tile::kChunksW;
        T* const to = reinterpret_cast<T*>(mShared.stages[stage]) + Tile::kM * Tile::kK + swizzled(row, chunk);
        T const* const from = static_cast<T const*>(mProblem.weight) + step * Tile::kStored + chunk * 8;
        TRTKP_UNROLL
        for (int32_t i = 0; i < Tile::kPassesW; ++i)
        {
            ptx::copyAsync16(to + i * Tile::kRowsPerPass * Tile::kStored, from + mAtW[i], mBytesW[i]);
        }
        if (static_cast<int32_t>(threadIdx.x) < Tile::kMetadataWords / 4)
        {
            uint16_t* const words = mShared.stages[stage] + Tile::kM * Tile::kK + Tile::kN * Tile::kStored;
            ptx::copyAsync16(words + threadIdx.x * 8, mProblem.metadata + mAtMetadata + step * 32, 16);
        }
    }

    // Issues the copies of eight channels of the thread's pixels.
    __device__ __forceinline__ void loadPixels(int32_t stage, Chunk chunk)
    {
        TapOffset const tap = mShared.taps[chunk.tap];
        int32_t const left = mProblem.channels - chunk.channel;
        int32_t const bytes = left >= 8 ? 16 : (left > 0 ? 2 * left : 0);
        int32_t const from = tap.at + mFirstChannel + chunk.channel;
        T const* const x = static_cast<T const*>(mProblem.x);
        T* const to = pixelRow(stage);
        TRTKP_UNROLL
        for (int32_t i = 0; i < Tile::kPassesX; ++i)
        {
            bool const isInside = this->isInside(i, tap);
            ptx::copyAsync16(to + i * Tile::kPixelsPerPass * Tile::kK, x + (mAt[i] + from), isInside ? bytes : 0);
        }
    }

    // For single channels: writes the places of the 64 columns of a step, one per thread. Padding is placed far above
    // the image, so that it is outside for every pixel.
    __device__ __forceinline__ void fillColumns(int32_t step)
    {
        int32_t const column = static_cast<int32_t>(threadIdx.x);
        if (column < Tile::kK)
        {
            int32_t const k = step * Tile::kK + column;
            Column at{-1, 0};
            if (k < mProblem.columns)
            {
                at = columnOf(mProblem, mProblem.index + mGroup * mProblem.listLength, k);
            }
            bool const exists = at.tap >= 0 && at.tap < mProblem.kernelRows * mProblem.kernelColumns && at.channel >= 0
                && at.channel < mProblem.channels;
            TapOffset const tap = exists ? mShared.taps[at.tap] : TapOffset{-(1 << 30), 0, 0};
            mShared.columns[step % 2][column] = {tap.h, tap.w, exists ? tap.at + mFirstChannel + at.channel : 0};
        }
    }

    // For single channels: reads the thread's eight columns of its pixels into registers.
    __device__ __forceinline__ void gather(int32_t step)
    {
        uint16_t const* const x = static_cast<uint16_t const*>(mProblem.x);
        TRTKP_UNROLL
        for (int32_t c = 0; c < 8; ++c)
        {
            TapOffset const column = mShared.columns[step % 2][mChunk * 8 + c];
            TRTKP_UNROLL
            for (int32_t i = 0; i < Tile::kPassesX; ++i)
            {
                uint32_t const value = isInside(i, column) ? x[mAt[i] + column.at] : 0U;
                uint32_t& pair = mGathered[i][c / 2];
                pair = c % 2 == 0 ? value : pair | value << 16;
            }
        }
    }

    __device__ __forceinline__ void storeGathered(int32_t stage)
    {
        T* const to = pixelRow(stage);
        TRTKP_UNROLL
        for (int32_t i = 0; i < Tile::kPassesX; ++i)
        {
            uint32_t const(&v)[4] = mGathered[i];
            *reinterpret_cast<uint4*>(to + i * Tile::kPixelsPerPass * Tile::kK) = uint4{v[0], v[1], v[2], v[3]};
        }
    }

private:
    __device__ __forceinline__ T* pixelRow(int32_t stage) const
    {
        return reinterpret_cast<T*>(mShared.stages[stage]) + swizzledPixel(mPixel, mChunk);
    }

    __device__ __forceinline__ bool isInside(int32_t pass, TapOffset const& tap) const
    {
        return static_cast<uint32_t>(mH[pass] + tap.h) < static_cast<uint32_t>(mProblem.height)
            && static_cast<uint32_t>(mW[pass] + tap.w) < static_cast<uint32_t>(mProblem.width);
    }

    ConvProblem const& mProblem;
    SparseShared<Tile>& mShared;
    int32_t mFirstRow, mSteps, mChunk, mPixel;
    int32_t mGroup, mFirstChannel, mAtMetadata;
    int32_t mH[Tile::kPassesX], mW[Tile::kPassesX], mAt[Tile::kPassesX];
    int32_t mBytesW[Tile::kPassesW], mAtW[Tile::kPassesW];
    uint32_t mGathered[Tile::kSingles ? Tile::kPassesX : 1][4];
};

template <typename Tile>
struct SparseSums
{
    float values[Tile::kWarpN / 16][Tile::kWarpM / 8][4];
};

// Multiplies columns 32 * kHalf to 32 * kHalf + 31 of a step, for one warp.
template <typename Tile, typename T, int32_t kHalf>
__device__ __forceinline__ void multiplyHalf(SparseSums<Tile>& sums, uint16_t const* pixels, uint16_t const* weights,
    uint32_t const (&metadata)[Tile::kWarpN / 16], int32_t lane)
{
    uint32_t fragmentW[Tile::kWarpN / 16][4];
    uint32_t fragmentX[Tile::kWarpM / 8][4];
    TRTKP_UNROLL
    for (int32_t i = 0; i < Tile::kWarpN / 16; ++i)
    {
        // Rows 0-7 and 8-15, then the same at stored columns 8-15: the order of a0 to a3 in mma.
        ptx::loadMatrixX4(fragmentW[i], weights + swizzled(i * 16 + lane % 16, kHalf * 2 + lane / 16));
    }
    TRTKP_UNROLL
    for (int32_t j = 0; j < Tile::kWarpM / 8; ++j)
    {
        // Columns 0-7, 8-15, 16-23 and 24-31 of eight pixels: b0 to b3.
        ptx::loadMatrixX4(fragmentX[j], pixels + swizzledPixel(j * 8 + lane % 8, kHalf * 4 + lane / 8));
    }
    TRTKP_UNROLL
    for (int32_t i = 0; i < Tile::kWarpN / 16; ++i)
    {
        TRTKP_UNROLL
        for (int32_t j = 0; j < Tile::kWarpM / 8; ++j)
        {
            ptx::mmaSparseM16N8K32<T, kHalf>(sums.values[i][j], fragmentW[i], fragmentX[j], metadata[i]);
        }
    }
}

// Multiplies one step of a warp: kWarpN rows x kWarpM pixels x 64 columns from shared memory.
template <typename Tile, typename T>
__device__ __forceinline__ void multiplySparse(
    SparseSums<Tile>& sums, uint16_t const* stage, int32_t warpPixel, int32_t warpRow, int32_t lane)
{
    uint16_t const* const weights = stage + Tile::kM * Tile::kK;
    uint32_t const* const words = reinterpret_cast<uint32_t const*>(weights + Tile::kN * Tile::kStored);
    uint32_t metadata[Tile::kWarpN / 16];
    TRTKP_UNROLL
    for (int32_t i = 0; i < Tile::kWarpN / 16; ++i)
    {
        metadata[i] = words[(warpRow / 16 + i) * 32 + lane];
    }
    // warpPixel and warpRow are multiples of 8, so they do not change the swizzle.
    uint16_t const* const pixels = stage + warpPixel * Tile::kK;
    uint16_t const* const rows = weights + warpRow * Tile::kStored;
    multiplyHalf<Tile, T, 0>(sums, pixels, rows, metadata, lane);
    multiplyHalf<Tile, T, 1>(sums, pixels, rows, metadata, lane);
}

template <typename Tile, typename T>
__device__ __forceinline__ void storeSparseTile(ConvProblem const& problem, SparseShared<Tile>& shared,
    SparseSums<Tile> const& sums, int32_t firstPixel, int32_t firstRow, int32_t warpPixel, int32_t warpRow)
{
    constexpr int32_t kPitch = Tile::kStagingPitch;
    int32_t const lane = threadIdx.x % 32;
    float* const staging = shared.staging + threadIdx.x / 32 * 8 * kPitch;
    TRTKP_UNROLL
    for (int32_t j = 0; j < Tile::kWarpM / 8; ++j)
    {
        TRTKP_UNROLL
        for (int32_t i = 0; i < Tile::kWarpN / 16; ++i)
        {
            float* const to = staging + lane % 4 * 2 * kPitch + i * 16 + lane / 4;
            float const(&d)[4] = sums.values[i][j];
            to[0] = d[0];
            to[kPitch] = d[1];
            to[8] = d[2];
            to[kPitch + 8] = d[3];
        }
        __syncwarp();
        storeStaged<Tile, T, 8>(problem, shared, staging, firstPixel + warpPixel + j * 8, firstRow, warpRow);
        __syncwarp();
    }
}

// The K loop over the list of one filter group, from step firstStep to firstStep + steps - 1.
template <typename Tile, typename T>
__device__ __forceinline__ void sumList(ConvProblem const& problem, SparseShared<Tile>& shared,
    SparseLoader<Tile, T>& loader, SparseSums<Tile>& sums, int32_t group, int32_t firstStep, int32_t steps,
    int32_t warpPixel, int32_t warpRow)
{
    int32_t const lane = threadIdx.x % 32;
    int32_t const firstColumn = firstStep * Tile::kK + static_cast<int32_t>(threadIdx.x) % Tile::kChunksX * 8;
    ChunkCursor<Tile::kK> cursor{problem, group, firstColumn};
    if constexpr (Tile::kSingles)
    {
        loader.fillColumns(firstStep);
    }
    TRTKP_UNROLL
    for (int32_t step = 0; step < Tile::kStages - 1; ++step)
    {
        if constexpr (Tile::kSingles)
        {
            __syncthreads(); // makes the columns of this step visible, and frees those of the previous one
            if (step < steps)
            {
                loader.gather(firstStep + step);
                loader.storeGathered(step);
            }
            loader.fillColumns(firstStep + step + 1);
        }
        if (step < steps)
        {
            loader.loadWeights(step, firstStep + step);
            if constexpr (!Tile::kSingles)
            {
                loader.loadPixels(step, cursor.next());
            }
        }
        ptx::copyAsyncCommit();
    }
    TRTKP_NO_UNROLL
    for (int32_t step = 0; step < steps; ++step)
    {
        ptx::copyAsyncWait<Tile::kStages - 2>();
        // Makes the copies of all threads visible, and frees the stage that the previous step has read.
        __syncthreads();
        int32_t const ahead = step + Tile::kStages - 1;
        if (ahead < steps)
        {
            loader.loadWeights(ahead % Tile::kStages, firstStep + ahead);
            if constexpr (Tile::kSingles)
            {
                loader.gather(firstStep + ahead);
            }
            else
            {
                loader.loadPixels(ahead % Tile::kStages, cursor.next());
            }
        }
        ptx::copyAsyncCommit();
        if constexpr (Tile::kSingles)
        {
            loader.fillColumns(firstStep + ahead + 1);
        }
        // Lanes may have diverged while walking their lists, but ldmatrix and mma need the whole warp.
        __syncwarp();
        multiplySparse<Tile, T>(sums, shared.stages[step % Tile::kStages], warpPixel, warpRow, lane);
        // Gathered values have arrived during the multiplication.
        if (Tile::kSingles && ahead < steps)
        {
            loader.storeGathered(ahead % Tile::kStages);
        }
    }
    ptx::copyAsyncWait<0>();
    __syncthreads();
}

template <typename Tile, typename T>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocksPerSm) sparseKernel(ConvProblem const problem)
{
    TRTKP_DYNAMIC_SHARED(dynamicShared);
    SparseShared<Tile>& shared = *reinterpret_cast<SparseShared<Tile>*>(dynamicShared);

    // Consecutive blocks read the same pixels, so that these come from the L2 cache.
    int32_t const rowTiles = (problem.rows + Tile::kN - 1) / Tile::kN;
    int32_t const rowTile = static_cast<int32_t>(blockIdx.x) % rowTiles;
    int32_t const firstPixel = static_cast<int32_t>(blockIdx.x) / rowTiles * Tile::kM;
    int32_t const firstRow = rowTile * Tile::kN;
    int32_t const rows = problem.rows - firstRow < Tile::kN ? problem.rows - firstRow : Tile::kN;
    int32_t const warp = threadIdx.x / 32;
    int32_t const warpPixel = warp / Tile::kWarpsN * Tile::kWarpM;
    int32_t const warpRow = warp % Tile::kWarpsN * Tile::kWarpN;

    fillTaps<Tile>(problem, shared);
    fillRows<Tile>(problem, shared, firstRow);
    SparseLoader<Tile, T> loader{problem, shared, firstPixel, firstRow};
    SparseSums<Tile> sums{};
    int32_t const allSteps = problem.storedColumns / Tile::kStored;
    int32_t const split = blockIdx.y;
    int32_t const firstStep = allSteps * split / problem.splits;
    int32_t const steps = allSteps * (split + 1) / problem.splits - firstStep;

    TRTKP_NO_UNROLL
    for (int32_t begin = 0; begin < rows;)
    {
        int32_t const end = endOfGroup(shared.rowGroup, begin, rows);
        int32_t const group = shared.rowGroup[begin];
        // Padding rows come last in their group, so a run that begins with one has no other rows.
        if (shared.rowFilter[begin] >= 0 && group >= 0 && group < problem.listGroups)
        {
            loader.select(begin, end);
            sumList<Tile, T>(problem, shared, loader, sums, group, firstStep, steps, warpPixel, warpRow);
        }
        begin = end;
    }

    storeSparseTile<Tile, T>(problem, shared, sums, firstPixel, firstRow, warpPixel, warpRow);

    if (rowTile == rowTiles - 1 && problem.splits == 1)
    {
        clearPaddedChannelsOfTile<Tile, T>(problem, firstPixel);
    }
}

} // namespace trtkp

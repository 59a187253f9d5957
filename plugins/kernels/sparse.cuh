// T4: 2:4 inside lists on mma.sp (sm_80 and later), fp16 and bf16, fp32 accumulation.
//
// A block computes kM pixels by kN packed rows, 64 columns of the list a step. Filters are the sparse operand: 32
// stored values of a row, and the metadata word of every lane as the instruction reads it, both copied as they were
// packed. Pixels are the dense operand, gathered as T1 gathers them: eight channels at a time where lists come in
// blocks of 8, else one by one through registers, which pays where a gathered pixel serves 64 rows or more.
//
// Sums stand as rows x pixels in the warps, and pass through shared memory to pixels x rows. Filter groups, splits and
// stores are T1's.
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

// kM pixels x kN rows, split over warps of kWarpM x kWarpN; kSingles gathers channel by channel.
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

    // Sums pass through shared memory 8 pixels at a time. A pitch of 4 more than a multiple of 32 spreads the pixels
    // and rows that a warp writes at once over all banks, and keeps rows of eight aligned.
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
    int32_t rowFilter[Tile::kN];       // -1 for padding and past the last row
    int32_t chunkFilter[Tile::kN / 8]; // first of eight consecutive, aligned filters, or -1
    TapOffset taps[Tile::kMaxTaps];
    TapOffset columns[2][Tile::kSingles ? Tile::kK : 1]; // single channels: of this step and of the next
};

// Where chunk `chunk` of the 128-byte row of a pixel stands, in elements; eight rows of one chunk cover all banks.
__device__ __forceinline__ int32_t swizzledPixel(int32_t pixel, int32_t chunk)
{
    return pixel * 64 + ((chunk ^ (pixel & 7)) << 3);
}

// Copies of one thread: some pixels of x, some rows of weight, 16 bytes of metadata.
template <typename Tile, typename T>
class SparseLoader
{
public:
    __device__ __forceinline__ SparseLoader(
        ConvProblem const& problem, SparseShared<Tile>& shared, TilePlace<Tile> const& place)
        : mProblem{problem}
        , mShared{shared}
        , mFirstRow{place.firstRow}
        , mSteps{problem.storedColumns / Tile::kStored}
        , mChunk{static_cast<int32_t>(threadIdx.x) % Tile::kChunksX}
        , mPixel{static_cast<int32_t>(threadIdx.x) / Tile::kChunksX}
        , mPixels{problem, place.firstPixel + mPixel}
    {
        // Metadata has whole blocks of 16 rows and no invalid word: past the last block the last one serves.
        int32_t const lastBlock = (problem.rows - 1) / 16;
        int32_t const block = place.firstRow / 16 + static_cast<int32_t>(threadIdx.x) / 8;
        mAtMetadata = (block < lastBlock ? block : lastBlock) * mSteps * 32 + static_cast<int32_t>(threadIdx.x) % 8 * 4;
    }

    __device__ __forceinline__ void select(RowRun const& run)
    {
        mGroup = run.group;
        mFirstChannel = run.firstChannel;
        mRows.select(run, static_cast<int32_t>(threadIdx.x) / Tile::kChunksW, mFirstRow, mProblem.storedColumns);
    }

    // Issues the copies of weights and metadata of a step.
    __device__ __forceinline__ void loadWeights(int32_t stage, int32_t step)
    {
        int32_t const chunk = static_cast<int32_t>(threadIdx.x) % Tile::kChunksW;
        int32_t const row = static_cast<int32_t>(threadIdx.x) / Tile::kChunksW;
        uint16_t* const weights = mShared.stages[stage] + Tile::kM * Tile::kK;
        mRows.template copyChunk<Tile::kStored>(reinterpret_cast<T*>(weights) + swizzled(row, chunk),
            static_cast<T const*>(mProblem.weight) + step * Tile::kStored + chunk * 8, true);
        if (static_cast<int32_t>(threadIdx.x) < Tile::kMetadataWords / 4)
        {
            uint16_t* const words = weights + Tile::kN * Tile::kStored;
            ptx::copyAsync16(words + threadIdx.x * 8, mProblem.metadata + mAtMetadata + step * 32, 16);
        }
    }

    // Issues the copies of eight channels of the thread's pixels.
    __device__ __forceinline__ void loadPixels(int32_t stage, Chunk chunk)
    {
        mPixels.template copyChunk<Tile::kK>(pixelRow(stage), mShared.taps[chunk.tap], mFirstChannel, chunk.channel);
    }

    // Single channels: writes where the 64 columns of a step stand, one a thread; padding is far above the image.
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

    // Single channels: reads the thread's eight columns of its pixels.
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
                uint32_t const value = mPixels.isInside(i, column) ? x[mPixels.at(i) + column.at] : 0U;
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

    ConvProblem const& mProblem;
    SparseShared<Tile>& mShared;
    int32_t mFirstRow, mSteps, mChunk, mPixel;
    int32_t mGroup, mFirstChannel, mAtMetadata;
    GatheredPixels<Tile::kPassesX, Tile::kPixelsPerPass> mPixels;
    CopiedRows<Tile::kPassesW, Tile::kRowsPerPass> mRows;
    uint32_t mGathered[Tile::kSingles ? Tile::kPassesX : 1][4];
};

template <typename Tile>
struct SparseSums
{
    float values[Tile::kWarpN / 16][Tile::kWarpM / 8][4];
};

// Columns 32 * kHalf to 32 * kHalf + 31 of a step of a warp.
template <typename Tile, typename T, int32_t kHalf>
__device__ __forceinline__ void multiplyHalf(SparseSums<Tile>& sums, uint16_t const* pixels, uint16_t const* weights,
    uint32_t const (&metadata)[Tile::kWarpN / 16], int32_t lane)
{
    uint32_t fragmentW[Tile::kWarpN / 16][4];
    uint32_t fragmentX[Tile::kWarpM / 8][4];
    TRTKP_UNROLL
    for (int32_t i = 0; i < Tile::kWarpN / 16; ++i)
    {
        // Rows 0-7 and 8-15, then the same at stored columns 8-15: the order of mma's a0 to a3.
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

// One step of a warp: kWarpN rows x kWarpM pixels x 64 columns from shared memory.
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
    // Multiples of 8 of pixels and rows do not change the swizzle.
    uint16_t const* const pixels = stage + warpPixel * Tile::kK;
    uint16_t const* const rows = weights + warpRow * Tile::kStored;
    multiplyHalf<Tile, T, 0>(sums, pixels, rows, metadata, lane);
    multiplyHalf<Tile, T, 1>(sums, pixels, rows, metadata, lane);
}

template <typename Tile, typename T>
__device__ __forceinline__ void storeSparseTile(
    ConvProblem const& problem, SparseShared<Tile>& shared, SparseSums<Tile> const& sums, TilePlace<Tile> const& place)
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
        storeStaged<Tile, T, 8>(
            problem, shared, staging, place.firstPixel + place.warpPixel + j * 8, place.firstRow, place.warpRow);
        __syncwarp();
    }
    clearPaddedChannelsOfTile<Tile, T>(problem, place);
}

// The K loop over one filter group's list.
template <typename Tile, typename T>
__device__ __forceinline__ void sumList(ConvProblem const& problem, SparseShared<Tile>& shared,
    SparseLoader<Tile, T>& loader, SparseSums<Tile>& sums, int32_t group, Steps const& range,
    TilePlace<Tile> const& place)
{
    int32_t const firstStep = range.first;
    int32_t const steps = range.count;
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
            __syncthreads(); // shows the columns of this step, and frees those of the one before
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
        // Shows every thread's copies to all, and frees the stage that the step before has read.
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
        // Lanes walk their lists apart; ldmatrix and mma want the warp together.
        __syncwarp();
        multiplySparse<Tile, T>(sums, shared.stages[step % Tile::kStages], place.warpPixel, place.warpRow,
            static_cast<int32_t>(threadIdx.x) % 32);
        // Gathered values arrive during the multiplication.
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

    TilePlace<Tile> const place{problem};
    fillTaps<Tile>(problem, shared);
    fillRows<Tile>(problem, shared, place.firstRow);
    SparseLoader<Tile, T> loader{problem, shared, place};
    SparseSums<Tile> sums{};
    Steps const steps{problem, problem.storedColumns / Tile::kStored};

    RowRun run{};
    TRTKP_NO_UNROLL
    while (nextRun(problem, shared, place.rows, run))
    {
        loader.select(run);
        sumList<Tile, T>(problem, shared, loader, sums, run.group, steps, place);
    }
    storeSparseTile<Tile, T>(problem, shared, sums, place);
}

} // namespace trtkp

// T1 with 32 columns a step: implicit GEMM with a gathered K dimension on mma.sync (sm_80 and later), fp16 and bf16,
// fp32 accumulation.
//
// gemm.cuh computes the same with 64 columns a step and fewer instructions beside each product, where C is a multiple
// of 8 and the kernel has at most 31 rows and columns together. This loop has neither condition, has the smallest tile
// (64 x 32), and is the one of dynamic.cuh.
//
// A block computes kM pixels by kN packed rows. Its A operand is gathered: every 16 bytes are eight consecutive
// channels of one pixel at one tap, copied by cp.async with zero-fill for spatial padding, list padding and channels
// past C. Its B operand is the packed weight as it is. Both stand in shared memory as rows of kK values, in kStages
// buffers.
//
// A list belongs to a filter group, so a block runs its K loop once for each group among its rows, and takes the
// weights of the other groups' rows as zero. That is correct for any grouping, and reaches full speed if groups fill
// whole tiles (pad rows to a multiple of kN).
//
// If there are too few tiles for the GPU, several blocks (blockIdx.y) each take a part of the K loop (split.cuh).
#pragma once

#include "chunk_cursor.cuh"
#include "device.cuh"
#include "problem.h"
#include "ptx.cuh"
#include "tile.cuh"

namespace trtkp
{

// kM pixels x kN rows x kK columns per step, divided among warps of kWarpM x kWarpN. kBlocksPerSm limits the registers
// of a thread.
template <int32_t kM_, int32_t kN_, int32_t kWarpM_, int32_t kWarpN_, int32_t kBlocksPerSm_>
struct MmaTile
{
    static constexpr int32_t kM = kM_;
    static constexpr int32_t kN = kN_;
    // 32 columns are 64 bytes: four 16-byte chunks a row, two rows per line of 32 banks.
    static constexpr int32_t kK = 32;
    static constexpr int32_t kStages = 4;
    static constexpr int32_t kWarpM = kWarpM_;
    static constexpr int32_t kWarpN = kWarpN_;
    static constexpr int32_t kWarpsN = kN / kWarpN;
    static constexpr int32_t kWarps = kM / kWarpM * kWarpsN;
    static constexpr int32_t kThreads = 32 * kWarps;
    static constexpr int32_t kBlocksPerSm = kBlocksPerSm_;

    static constexpr int32_t kChunks = kK / 8;
    static constexpr int32_t kRowsPerPass = kThreads / kChunks;
    static constexpr int32_t kPassesA = kM / kRowsPerPass;
    static constexpr int32_t kPassesB = kN / kRowsPerPass;
    static constexpr int32_t kStageElements = (kM + kN) * kK;

    // Accumulators pass through shared memory, 16 pixels at a time. Rows are padded so that the 8-byte writes of half a
    // warp go to different banks.
    static constexpr int32_t kStagingPitch = kWarpN + 8;
    static constexpr int32_t kStagingFloats = kWarps * 16 * kStagingPitch;

    static constexpr int32_t kMaxTaps = 64;

    static_assert(kRowsPerPass % 8 == 0, "a thread's rows must share one swizzle");
    static_assert(kM % kRowsPerPass == 0 && kN % kRowsPerPass == 0, "copies come in whole passes");
    static_assert(kWarpM % 16 == 0 && kWarpN % 16 == 0, "fragments are 16 x 16");
};

template <typename Tile>
struct MmaShared
{
    union
    {
        alignas(128) uint16_t stages[Tile::kStages][Tile::kStageElements]; // A, then B
        float staging[Tile::kStagingFloats];
    };
    int32_t rowGroup[Tile::kN];
    int32_t rowFilter[Tile::kN];       // -1 for padding rows and past the last row
    int32_t chunkFilter[Tile::kN / 8]; // first of eight consecutive, aligned filters, or -1
    TapOffset taps[Tile::kMaxTaps];
};

// The place of 16-byte chunk `chunk` of row `row`, in elements. The four chunks of a row are permuted so that the same
// chunk of eight rows, which ldmatrix reads together, covers all 32 banks.
__device__ __forceinline__ int32_t swizzled(int32_t row, int32_t chunk)
{
    return row * 32 + ((chunk ^ ((row >> 1) & 3)) << 3);
}

// Copies a thread's part of the pixels of A and of the rows of B.
template <typename Tile, typename T>
class TileLoader
{
public:
    __device__ __forceinline__ TileLoader(
        ConvProblem const& problem, MmaShared<Tile>& shared, TilePlace<Tile> const& place)
        : mProblem{problem}
        , mShared{shared}
        , mFirstRow{place.firstRow}
        , mChunk{static_cast<int32_t>(threadIdx.x) % Tile::kChunks}
        , mRow{static_cast<int32_t>(threadIdx.x) / Tile::kChunks}
    {
        int32_t const pixels = problem.batch * problem.outHeight * problem.outWidth;
        TRTKP_UNROLL
        for (int32_t i = 0; i < Tile::kPassesA; ++i)
        {
            int32_t const pixel = place.firstPixel + mRow + i * Tile::kRowsPerPass;
            int32_t const q = pixel % problem.outWidth;
            int32_t const p = pixel / problem.outWidth % problem.outHeight;
            int32_t const n = pixel / problem.outWidth / problem.outHeight;
            // A pixel past the last one is placed below the image, so that it is outside at every tap.
            bool const exists = pixel < pixels;
            mH[i] = exists ? p * problem.strideH - problem.padTop : problem.height;
            mW[i] = q * problem.strideW - problem.padLeft;
            mAt[i] = exists ? ((n * problem.height + mH[i]) * problem.width + mW[i]) * problem.xPitch : 0;
        }
    }

    // Selects the rows [begin, end) of the tile, which belong to one filter group, and the first column.
    __device__ __forceinline__ void select(RowRun const& run, int32_t firstColumn)
    {
        mColumn = firstColumn;
        mFirstChannel = run.firstChannel;
        TRTKP_UNROLL
        for (int32_t i = 0; i < Tile::kPassesB; ++i)
        {
            int32_t const row = mRow + i * Tile::kRowsPerPass;
            bool const isSelected = row >= run.begin && row < run.end;
            mBytesB[i] = isSelected ? 16 : 0;
            mAtB[i] = isSelected ? (mFirstRow + row) * mProblem.columns : 0;
        }
    }

    // Issues the copies of one step. Steps must be loaded in order. A copy of 0 bytes reads nothing, whatever its
    // address.
    __device__ __forceinline__ void load(int32_t stage, Chunk chunk)
    {
        T* const a = reinterpret_cast<T*>(mShared.stages[stage]) + swizzled(mRow, mChunk);
        T* const b = a + Tile::kM * Tile::kK;

        TapOffset const tap = mShared.taps[chunk.tap];
        int32_t const left = mProblem.channels - chunk.channel;
        int32_t const bytes = left >= 8 ? 16 : (left > 0 ? 2 * left : 0);
        int32_t const from = tap.at + mFirstChannel + chunk.channel;
        T const* const x = static_cast<T const*>(mProblem.x);
        TRTKP_UNROLL
        for (int32_t i = 0; i < Tile::kPassesA; ++i)
        {
            bool const isInside = static_cast<uint32_t>(mH[i] + tap.h) < static_cast<uint32_t>(mProblem.height)
                && static_cast<uint32_t>(mW[i] + tap.w) < static_cast<uint32_t>(mProblem.width);
            ptx::copyAsync16(a + i * Tile::kRowsPerPass * Tile::kK, x + (mAt[i] + from), isInside ? bytes : 0);
        }

        T const* const weight = static_cast<T const*>(mProblem.weight) + mColumn;
        bool const isColumn = mColumn < mProblem.columns;
        TRTKP_UNROLL
        for (int32_t i = 0; i < Tile::kPassesB; ++i)
        {
            ptx::copyAsync16(b + i * Tile::kRowsPerPass * Tile::kK, weight + mAtB[i], isColumn ? mBytesB[i] : 0);
        }
        mColumn += Tile::kK;
    }

private:
    ConvProblem const& mProblem;
    MmaShared<Tile>& mShared;
    int32_t mFirstRow, mChunk, mRow;
    int32_t mColumn, mFirstChannel;
    int32_t mH[Tile::kPassesA], mW[Tile::kPassesA], mAt[Tile::kPassesA];
    int32_t mBytesB[Tile::kPassesB], mAtB[Tile::kPassesB];
};

template <typename Tile>
struct Accumulators
{
    float values[Tile::kWarpM / 16][Tile::kWarpN / 8][4];
};

// One step of a warp: kWarpM x kWarpN x kK from shared memory.
template <typename Tile, typename T>
__device__ __forceinline__ void multiply(
    Accumulators<Tile>& sums, uint16_t const* stage, int32_t warpPixel, int32_t warpRow, int32_t lane)
{
    uint16_t const* const a = stage;
    uint16_t const* const b = stage + Tile::kM * Tile::kK;
    TRTKP_UNROLL
    for (int32_t k = 0; k < Tile::kK / 16; ++k)
    {
        uint32_t fragmentA[Tile::kWarpM / 16][4];
        uint32_t fragmentB[Tile::kWarpN / 16][4];
        TRTKP_UNROLL
        for (int32_t i = 0; i < Tile::kWarpM / 16; ++i)
        {
            // Pixels 0-7 and 8-15, then the same at columns 8-15: the order of a0 to a3 in mma.
            ptx::loadMatrixX4(fragmentA[i], a + swizzled(warpPixel + i * 16 + lane % 16, k * 2 + lane / 16));
        }
        TRTKP_UNROLL
        for (int32_t j = 0; j < Tile::kWarpN / 16; ++j)
        {
            // Columns 0-7 and 8-15 of rows 0-7, then of rows 8-15: b0 and b1 of two mma instructions.
            int32_t const row = warpRow + j * 16 + lane / 16 * 8 + lane % 8;
            ptx::loadMatrixX4(fragmentB[j], b + swizzled(row, k * 2 + lane / 8 % 2));
        }
        TRTKP_UNROLL
        for (int32_t i = 0; i < Tile::kWarpM / 16; ++i)
        {
            TRTKP_UNROLL
            for (int32_t j = 0; j < Tile::kWarpN / 8; ++j)
            {
                uint32_t const* const pair = fragmentB[j / 2] + j % 2 * 2;
                ptx::mmaM16N8K16<T>(sums.values[i][j], fragmentA[i], pair[0], pair[1]);
            }
        }
    }
}

// Writes pixels 16 * slab to 16 * slab + 15 of a warp's sums to shared memory, as rows of kStagingPitch.
template <typename Tile>
__device__ __forceinline__ void stageSlab(Accumulators<Tile> const& sums, int32_t slab, float* staging, int32_t lane)
{
    TRTKP_UNROLL
    for (int32_t j = 0; j < Tile::kWarpN / 8; ++j)
    {
        float* const to = staging + lane / 4 * Tile::kStagingPitch + j * 8 + lane % 4 * 2;
        float const(&d)[4] = sums.values[slab][j];
        *reinterpret_cast<float2*>(to) = float2{d[0], d[1]};
        *reinterpret_cast<float2*>(to + 8 * Tile::kStagingPitch) = float2{d[2], d[3]};
    }
}

template <typename Tile, typename T, typename Shared, typename Sums>
__device__ __forceinline__ void storeTile(
    ConvProblem const& problem, Shared& shared, Sums const& sums, TilePlace<Tile> const& place)
{
    float* const staging = shared.staging + threadIdx.x / 32 * 16 * Tile::kStagingPitch;
    TRTKP_UNROLL
    for (int32_t i = 0; i < Tile::kWarpM / 16; ++i)
    {
        stageSlab(sums, i, staging, static_cast<int32_t>(threadIdx.x) % 32);
        __syncwarp();
        storeStaged<Tile, T, 16>(
            problem, shared, staging, place.firstPixel + place.warpPixel + i * 16, place.firstRow, place.warpRow);
        __syncwarp();
    }
    if (place.hasLastRows && problem.splits == 1)
    {
        clearPaddedChannelsOfTile<Tile, T>(problem, place.firstPixel);
    }
}

// Computes the tile of a thread block.
template <typename Tile, typename T>
__device__ __forceinline__ void mmaBlock(ConvProblem const& problem)
{
    TRTKP_DYNAMIC_SHARED(dynamicShared);
    MmaShared<Tile>& shared = *reinterpret_cast<MmaShared<Tile>*>(dynamicShared);

    TilePlace<Tile> const place{problem};
    fillTaps<Tile>(problem, shared);
    fillRows<Tile>(problem, shared, place.firstRow);
    TileLoader<Tile, T> loader{problem, shared, place};
    Accumulators<Tile> sums{};
    Steps const steps{problem, (problem.columns + Tile::kK - 1) / Tile::kK};
    int32_t const firstColumn = steps.first * Tile::kK + static_cast<int32_t>(threadIdx.x) % Tile::kChunks * 8;

    RowRun run{};
    TRTKP_NO_UNROLL
    while (nextRun(problem, shared, place.rows, run))
    {
        loader.select(run, firstColumn);
        ChunkCursor<Tile::kK> cursor{problem, run.group, firstColumn};
        TRTKP_UNROLL
        for (int32_t step = 0; step < Tile::kStages - 1; ++step)
        {
            if (step < steps.count)
            {
                loader.load(step, cursor.next());
            }
            ptx::copyAsyncCommit();
        }
        TRTKP_NO_UNROLL
        for (int32_t step = 0; step < steps.count; ++step)
        {
            ptx::copyAsyncWait<Tile::kStages - 2>();
            // Makes the copies of all threads visible, and frees the stage that the previous step has read.
            __syncthreads();
            int32_t const ahead = step + Tile::kStages - 1;
            if (ahead < steps.count)
            {
                loader.load(ahead % Tile::kStages, cursor.next());
            }
            ptx::copyAsyncCommit();
            // Lanes may have diverged while walking their lists, but ldmatrix and mma need the whole warp.
            __syncwarp();
            multiply<Tile, T>(sums, shared.stages[step % Tile::kStages], place.warpPixel, place.warpRow,
                static_cast<int32_t>(threadIdx.x) % 32);
        }
        ptx::copyAsyncWait<0>();
        __syncthreads();
    }
    storeTile<Tile, T>(problem, shared, sums, place);
}

template <typename Tile, typename T>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocksPerSm) mmaKernel(ConvProblem const problem)
{
    mmaBlock<Tile, T>(problem);
}

} // namespace trtkp

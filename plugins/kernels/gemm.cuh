// The implicit GEMM of mma.cuh with wider steps: rows of 128 bytes in shared memory, which are 64 columns of 16-bit
// values or 32 of float32. It works with any arithmetic (tensor_sums.cuh, simt_sums.cuh) and any way to gather the A
// operand (block_loader.cuh, single_loader.cuh).
//
// Everything that a step has to decide per pixel and column is prepared, so that few instructions remain beside the
// arithmetic. With 128 x 128 tiles on sm_90 these are 1.38 per HMMA, against 4.94 in mma.cuh
// (docs/architecture/kernels.md):
// - All threads together fill a table of the list's units (16-byte chunks or single columns) for many steps ahead. It
//   has the offset of a unit from its pixel, and the bits of its kernel row and column.
// - Every pixel has a word with the kernel rows and columns at which it is outside the image. One AND of the two says
//   whether a unit is read.
#pragma once

#include "device.cuh"
#include "mma.cuh"
#include "problem.h"
#include "ptx.cuh"
#include "reference.cuh"
#include "tile.cuh"

namespace trtkp
{

// kM pixels x kN rows, divided among warps of kWarpM x kWarpN. kBlocksPerSm limits the registers of a thread.
template <int32_t kM_, int32_t kN_, int32_t kWarpM_, int32_t kWarpN_, int32_t kStages_, int32_t kBlocksPerSm_>
struct GemmTile
{
    static constexpr int32_t kM = kM_;
    static constexpr int32_t kN = kN_;
    static constexpr int32_t kWarpM = kWarpM_;
    static constexpr int32_t kWarpN = kWarpN_;
    static constexpr int32_t kStages = kStages_;
    static constexpr int32_t kBlocksPerSm = kBlocksPerSm_;
    static constexpr int32_t kWarpsN = kN / kWarpN;
    static constexpr int32_t kWarps = kM / kWarpM * kWarpsN;
    static constexpr int32_t kThreads = 32 * kWarps;

    static constexpr int32_t kRowBytes = 128;
    static constexpr int32_t kChunks = kRowBytes / 16;
    static constexpr int32_t kRowsPerPass = kThreads / kChunks;
    static constexpr int32_t kStageBytes = (kM + kN) * kRowBytes;

    // As in MmaTile.
    static constexpr int32_t kStagingPitch = kWarpN + 8;
    static constexpr int32_t kStagingFloats = kWarps * 16 * kStagingPitch;

    static_assert(kRowsPerPass % 8 == 0, "a thread's rows must share one swizzle");
    static_assert(kM % kRowsPerPass == 0, "copies of A come in whole passes");
    static_assert(kWarpM % 16 == 0 && kWarpN % 16 == 0, "fragments are 16 x 16");
};

// Kernel row r has bit r, kernel column s has bit R + s, and padding has the highest bit: R + S <= kMaxKernelSides.
constexpr uint32_t kPaddingUnit = 0x80000000U;

struct alignas(8) Unit
{
    int32_t at;    // offset from the pixel under tap 0, in elements of x
    uint32_t bits; // those of its kernel row and column; kPaddingUnit if it must not be read
};

struct alignas(8) PixelPlace
{
    int32_t at;       // of the pixel under tap 0, in elements of x
    uint32_t outside; // bits of the kernel rows and columns that fall outside the image, and kPaddingUnit
};

template <typename Tile>
struct GemmShared
{
    union
    {
        alignas(128) unsigned char stages[Tile::kStages][Tile::kStageBytes]; // A, then B
        float staging[Tile::kStagingFloats];
    };
    alignas(16) Unit units[2][Tile::kThreads]; // one window is read while the next is filled
    PixelPlace pixels[Tile::kM];
    int32_t rowGroup[Tile::kN];
    int32_t rowFilter[Tile::kN];       // -1 for padding rows and past the last row
    int32_t chunkFilter[Tile::kN / 8]; // first of eight consecutive, aligned filters, or -1
};

// The place of 16-byte chunk `chunk` of row `row`, in bytes. Both the same chunk of eight rows, which ldmatrix reads
// together, and the eight chunks of one row cover all 32 banks.
__device__ __forceinline__ int32_t swizzled128(int32_t row, int32_t chunk)
{
    return row * 128 + ((chunk ^ (row & 7)) << 4);
}

template <typename Tile>
__device__ __forceinline__ void fillPixels(ConvProblem const& problem, GemmShared<Tile>& shared, int32_t firstPixel)
{
    int32_t const pixels = problem.batch * problem.outHeight * problem.outWidth;
    TRTKP_NO_UNROLL
    for (int32_t i = threadIdx.x; i < Tile::kM; i += Tile::kThreads)
    {
        int32_t const pixel = firstPixel + i;
        int32_t const h = pixel / problem.outWidth % problem.outHeight * problem.strideH - problem.padTop;
        int32_t const w = pixel % problem.outWidth * problem.strideW - problem.padLeft;
        int32_t const n = pixel / problem.outWidth / problem.outHeight;
        uint32_t outside = kPaddingUnit;
        TRTKP_NO_UNROLL
        for (int32_t r = 0; r < problem.kernelRows; ++r)
        {
            bool const isInside
                = static_cast<uint32_t>(h + r * problem.dilationH) < static_cast<uint32_t>(problem.height);
            outside |= isInside ? 0U : 1U << r;
        }
        TRTKP_NO_UNROLL
        for (int32_t s = 0; s < problem.kernelColumns; ++s)
        {
            bool const isInside
                = static_cast<uint32_t>(w + s * problem.dilationW) < static_cast<uint32_t>(problem.width);
            outside |= isInside ? 0U : 1U << (problem.kernelRows + s);
        }
        shared.pixels[i] = pixel < pixels
            ? PixelPlace{((n * problem.height + h) * problem.width + w) * problem.xPitch, outside}
            : PixelPlace{0, 0xffffffffU};
    }
}

// The unit that begins at packed column k of a list and has `kColumns` consecutive channels. A list that breaks its
// promise to the C interface gives wrong values, but never an address outside the tensor.
template <int32_t kColumns>
__device__ __forceinline__ Unit unitOf(ConvProblem const& problem, int32_t const* list, int32_t firstChannel, int32_t k)
{
    if (k < problem.columns)
    {
        Column const column = columnOf(problem, list, k);
        int32_t const channel = column.channel & ~(kColumns - 1);
        if (column.tap >= 0 && column.tap < problem.kernelRows * problem.kernelColumns && channel >= 0
            && channel < problem.channels)
        {
            int32_t const r = column.tap / problem.kernelColumns;
            int32_t const s = column.tap % problem.kernelColumns;
            int32_t const offset = (r * problem.dilationH * problem.width + s * problem.dilationW) * problem.xPitch;
            return {offset + firstChannel + channel, 1U << r | 1U << (problem.kernelRows + s)};
        }
    }
    return {0, kPaddingUnit};
}

// One run of the K loop: the rows of a tile that belong to one filter group, and the columns that the block sums.
struct Run
{
    RowRun rows;
    int32_t const* list;
    int32_t firstRow; // of the tile
    int32_t firstColumn;
    int32_t steps;
};

// Fills a window of the table of units, one unit per thread. It covers the next kThreads / kUnitsPerStep steps.
template <typename Tile, typename Loader>
__device__ __forceinline__ void fillUnits(
    ConvProblem const& problem, GemmShared<Tile>& shared, Run const& run, int32_t window)
{
    int32_t const unit = window * Tile::kThreads + static_cast<int32_t>(threadIdx.x);
    int32_t const column = run.firstColumn + unit * Loader::kColumnsPerUnit;
    shared.units[window % 2][threadIdx.x]
        = unitOf<Loader::kColumnsPerUnit>(problem, run.list, run.rows.firstChannel, column);
}

// Unit `unit` of a run, which must be in one of the two windows.
template <typename Tile>
__device__ __forceinline__ Unit unitAt(GemmShared<Tile> const& shared, int32_t unit)
{
    return (&shared.units[0][0])[static_cast<uint32_t>(unit) % (2 * Tile::kThreads)];
}

template <typename Tile>
__device__ __forceinline__ int32_t nextStage(int32_t stage)
{
    if constexpr (Tile::kStages == 2)
    {
        return stage ^ 1;
    }
    return stage == Tile::kStages - 1 ? 0 : stage + 1;
}

// Copies run kAhead steps past the last one, where they read nothing. That costs less than comparing in every step.
template <typename Tile, typename T, typename Sums, typename Loader>
__device__ __forceinline__ void accumulate(
    ConvProblem const& problem, GemmShared<Tile>& shared, Run const& run, Loader& loader, Sums& sums, bool isMine)
{
    constexpr int32_t kAhead = Tile::kStages - 1;
    constexpr int32_t kStepsPerWindow = Tile::kThreads / Loader::kUnitsPerStep;
    static_assert(kStepsPerWindow >= kAhead, "the first copies must not reach past the first window");

    fillUnits<Tile, Loader>(problem, shared, run, 0);
    fillUnits<Tile, Loader>(problem, shared, run, 1);
    loader.select(run);
    __syncthreads();
    TRTKP_UNROLL
    for (int32_t step = 0; step < kAhead; ++step)
    {
        loader.fetch(step, step);
        loader.store(step);
        ptx::copyAsyncCommit();
    }
    int32_t readStage = 0;
    int32_t writeStage = kAhead;
    int32_t const last = run.steps + kAhead;
    TRTKP_NO_UNROLL
    for (int32_t ahead = kAhead; ahead < last;)
    {
        int32_t const window = ahead / kStepsPerWindow;
        int32_t const pastWindow = (window + 1) * kStepsPerWindow;
        if (ahead % kStepsPerWindow == 0)
        {
            __syncthreads(); // all threads are done with the window that is overwritten
            fillUnits<Tile, Loader>(problem, shared, run, window + 1);
        }
        int32_t const stop = pastWindow < last ? pastWindow : last;
        TRTKP_NO_UNROLL
        for (; ahead < stop; ++ahead)
        {
            ptx::copyAsyncWait<kAhead - 1>();
            // Makes the copies of all threads visible, and frees the stage that the previous step has read.
            __syncthreads();
            loader.fetch(ahead, writeStage);
            ptx::copyAsyncCommit();
            if (isMine)
            {
                __syncwarp();
                sums.multiply(shared.stages[readStage]);
            }
            loader.store(writeStage);
            readStage = nextStage<Tile>(readStage);
            writeStage = nextStage<Tile>(writeStage);
        }
    }
    ptx::copyAsyncWait<0>();
    __syncthreads();
}

template <typename Tile, typename T, typename Sums, typename Loader>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocksPerSm) gemmKernel(ConvProblem const problem)
{
    TRTKP_DYNAMIC_SHARED(dynamicShared);
    GemmShared<Tile>& shared = *reinterpret_cast<GemmShared<Tile>*>(dynamicShared);

    TilePlace<Tile> const place{problem};
    fillPixels(problem, shared, place.firstPixel);
    fillRows<Tile>(problem, shared, place.firstRow);
    Loader loader{problem, shared};
    Sums sums{place.warpPixel, place.warpRow};
    Steps const steps{problem, (problem.columns + Loader::kColumnsPerStep - 1) / Loader::kColumnsPerStep};

    RowRun rows{};
    TRTKP_NO_UNROLL
    while (nextRun(problem, shared, place.rows, rows))
    {
        Run const run{rows, problem.index + rows.group * problem.listLength, place.firstRow,
            steps.first * Loader::kColumnsPerStep, steps.count};
        // A warp whose rows all belong to other groups would only add zeros.
        bool const isMine = place.warpRow < rows.end && place.warpRow + Tile::kWarpN > rows.begin;
        accumulate<Tile, T>(problem, shared, run, loader, sums, isMine);
    }
    storeTile<Tile, T>(problem, shared, sums, place);
}

} // namespace trtkp

// T3 for filter groups of a few filters: a direct convolution on the CUDA cores with fp32 sums.
//
// A block computes 8 x 8 pixels of an image for kDirectRows packed rows. The input under these pixels is staged in
// shared memory channel by channel, with its halo and the zeros of the padding, as many channels at a time as fit. So a
// list may name channels and taps in any order.
//
// A warp takes one packed row after the other. Its lanes look through 32 entries of the list at a time, and keep those
// of the staged channels as an offset and a weight. Then every lane adds these up for two pixels. The two are
// kDirectRowsApart rows of the tile apart and lie side by side in shared memory, so one 4-byte access reads both at any
// tap, and the lanes of a warp have no bank conflicts at stride 1.
//
// It beats a dense layer only below about 3 % of the weights, by counting instructions (docs/architecture/kernels.md).
// It is there so that lists as the papers have them, one for each filter, run as they are.
#pragma once

#include "device.cuh"
#include "problem.h"
#include "reference.cuh"
#include "store.cuh"

namespace trtkp
{

constexpr int32_t kDirectThreads = 256;
constexpr int32_t kDirectWarps = kDirectThreads / 32;
constexpr int32_t kDirectRows = 32;
constexpr int32_t kDirectRowsPerWarp = kDirectRows / kDirectWarps;
constexpr int32_t kDirectSide = 8;
constexpr int32_t kDirectRowsApart = kDirectSide / 2;
constexpr int32_t kDirectPixels = kDirectSide * kDirectSide;
constexpr int32_t kDirectSumsPitch = kDirectRows + 4; // keeps rows of sums at multiples of 16 bytes
constexpr int32_t kDirectTileBytes = 36 * 1024;       // leaves room for four blocks on an SM of sm_80

// The size of the staged input of one channel, in pairs of elements.
struct DirectPlane
{
    int32_t height, width;
    int32_t pitch; // between two channels; odd, so that writes of neighbouring channels go to different banks
};

__host__ __device__ __forceinline__ DirectPlane directPlane(ConvProblem const& problem)
{
    int32_t const height = (kDirectRowsApart - 1) * problem.strideH + (problem.kernelRows - 1) * problem.dilationH + 1;
    int32_t const width = (kDirectSide - 1) * problem.strideW + (problem.kernelColumns - 1) * problem.dilationW + 1;
    return {height, width, height * width | 1};
}

// An entry of a list whose channel is staged.
struct alignas(8) DirectEntry
{
    int32_t at; // offset from a lane's pair, in pairs
    float weight;
};

template <typename T>
struct alignas(2 * sizeof(T)) DirectPair
{
    T values[2];
};

struct DirectShared
{
    union
    {
        alignas(16) unsigned char tile[kDirectTileBytes];
        float sums[kDirectPixels * kDirectSumsPitch];
    };
    DirectEntry entries[kDirectWarps][32];
    int32_t rowFilter[kDirectRows]; // -1 for padding rows and past the last row
};

// The sample and the first pixel of a block's tile.
struct DirectTile
{
    int32_t n, p, q;

    __device__ __forceinline__ DirectTile(ConvProblem const& problem, int32_t tile)
    {
        int32_t const across = (problem.outWidth + kDirectSide - 1) / kDirectSide;
        int32_t const down = (problem.outHeight + kDirectSide - 1) / kDirectSide;
        q = tile % across * kDirectSide;
        p = tile / across % down * kDirectSide;
        n = tile / across / down;
    }
};

// Copies channels [first, first + count) of x under a tile. Channels count over all ONNX groups.
template <typename T>
__device__ __forceinline__ void stageChannels(ConvProblem const& problem, DirectTile const& tile,
    DirectPlane const& plane, T* staged, int32_t first, int32_t count)
{
    int32_t const elements = 2 * plane.height * plane.width;
    T const* const x = static_cast<T const*>(problem.x);
    // Neighbouring threads take neighbouring channels of one pixel, which are neighbours in memory too.
    TRTKP_NO_UNROLL
    for (int32_t i = threadIdx.x; i < elements * count; i += kDirectThreads)
    {
        int32_t const place = i / count;
        int32_t const channel = i % count;
        int32_t const h
            = (tile.p + place % 2 * kDirectRowsApart) * problem.strideH - problem.padTop + place / 2 / plane.width;
        int32_t const w = tile.q * problem.strideW - problem.padLeft + place / 2 % plane.width;
        bool const isInside = static_cast<uint32_t>(h) < static_cast<uint32_t>(problem.height)
            && static_cast<uint32_t>(w) < static_cast<uint32_t>(problem.width);
        staged[channel * 2 * plane.pitch + place] = isInside
            ? x[((tile.n * problem.height + h) * problem.width + w) * problem.xPitch + first + channel]
            : fromFloat<T>(0.F);
    }
}

// Adds the contribution of channels [first, first + count) to a row's sums for the two pixels of a lane.
template <typename T>
__device__ __forceinline__ void addRow(ConvProblem const& problem, DirectPlane const& plane, DirectEntry* entries,
    DirectPair<T> const* mine, int32_t row, int32_t filter, int32_t first, int32_t count, float (&sums)[2])
{
    int32_t const lane = threadIdx.x % 32;
    int32_t const* const list = problem.index + problem.rowGroup[row] * problem.listLength;
    T const* const weight = static_cast<T const*>(problem.weight) + row * problem.columns;
    int32_t const firstChannel = filter / (problem.filters / problem.groups) * problem.channels - first;
    TRTKP_NO_UNROLL
    for (int32_t firstColumn = 0; firstColumn < problem.columns; firstColumn += 32)
    {
        int32_t const k = firstColumn + lane;
        Column const column = k < problem.columns ? columnOf(problem, list, k) : Column{-1, 0};
        int32_t const channel = firstChannel + column.channel;
        bool const isStaged = column.tap >= 0 && column.tap < problem.kernelRows * problem.kernelColumns
            && column.channel >= 0 && column.channel < problem.channels && channel >= 0 && channel < count;
        uint32_t const staged = __ballot_sync(0xffffffffU, isStaged);
        if (isStaged)
        {
            int32_t const r = column.tap / problem.kernelColumns;
            int32_t const s = column.tap % problem.kernelColumns;
            DirectEntry& entry = entries[__popc(staged & ((1U << lane) - 1))];
            entry.at = channel * plane.pitch + r * problem.dilationH * plane.width + s * problem.dilationW;
            entry.weight = toFloat(weight[k]);
        }
        __syncwarp();
        int32_t const found = __popc(staged);
        TRTKP_UNROLL_4
        for (int32_t i = 0; i < found; ++i)
        {
            DirectEntry const entry = entries[i];
            DirectPair<T> const pair = mine[entry.at];
            sums[0] = fmaf(toFloat(pair.values[0]), entry.weight, sums[0]);
            sums[1] = fmaf(toFloat(pair.values[1]), entry.weight, sums[1]);
        }
        __syncwarp();
    }
}

// Bias, residual, activation and stores. One task is eight rows of one pixel.
template <typename T>
__device__ __forceinline__ void storeDirect(
    ConvProblem const& problem, DirectShared const& shared, DirectTile const& tile, bool clears)
{
    TRTKP_NO_UNROLL
    for (int32_t task = threadIdx.x; task < kDirectPixels * kDirectRows / 8; task += kDirectThreads)
    {
        int32_t const place = task / (kDirectRows / 8);
        int32_t const row = task % (kDirectRows / 8) * 8;
        int32_t const p = tile.p + place / kDirectSide;
        int32_t const q = tile.q + place % kDirectSide;
        if (p < problem.outHeight && q < problem.outWidth)
        {
            int32_t const pixel = (tile.n * problem.outHeight + p) * problem.outWidth + q;
            int32_t const first = firstOfEight(problem, shared.rowFilter + row);
            storeChunk<T>(problem, shared.sums + place * kDirectSumsPitch + row, pixel, first, shared.rowFilter + row);
            if (clears && row == 0)
            {
                clearPaddedChannels<T>(problem, pixel);
            }
        }
    }
}

template <typename T>
__global__ void __launch_bounds__(kDirectThreads, 4) directKernel(ConvProblem const problem)
{
    TRTKP_DYNAMIC_SHARED(dynamicShared);
    DirectShared& shared = *reinterpret_cast<DirectShared*>(dynamicShared);
    int32_t const rowTiles = (problem.rows + kDirectRows - 1) / kDirectRows;
    int32_t const rowTile = static_cast<int32_t>(blockIdx.x) % rowTiles;
    int32_t const firstRow = rowTile * kDirectRows;
    DirectTile const tile{problem, static_cast<int32_t>(blockIdx.x) / rowTiles};
    DirectPlane const plane = directPlane(problem);
    int32_t const chunk = kDirectTileBytes / static_cast<int32_t>(sizeof(DirectPair<T>)) / plane.pitch;

    for (int32_t i = threadIdx.x; i < kDirectRows; i += kDirectThreads)
    {
        int32_t const row = firstRow + i;
        int32_t const filter = row < problem.rows ? problem.rowFilter[row] : -1;
        int32_t const group = row < problem.rows ? problem.rowGroup[row] : -1;
        bool const exists = filter >= 0 && filter < problem.filters && group >= 0 && group < problem.listGroups;
        shared.rowFilter[i] = exists ? filter : -1;
    }
    __syncthreads();
    // The range of channels that the rows' ONNX groups read.
    int32_t channel = problem.channels * problem.groups;
    int32_t pastChannel = 0;
    for (int32_t i = 0; i < kDirectRows; ++i)
    {
        int32_t const filter = shared.rowFilter[i];
        int32_t const first = filter / (problem.filters / problem.groups) * problem.channels;
        channel = filter >= 0 && first < channel ? first : channel;
        pastChannel = filter >= 0 && first + problem.channels > pastChannel ? first + problem.channels : pastChannel;
    }

    int32_t const lane = threadIdx.x % 32;
    int32_t const warp = threadIdx.x / 32;
    T* const staged = reinterpret_cast<T*>(shared.tile);
    DirectPair<T> const* const mine = reinterpret_cast<DirectPair<T> const*>(shared.tile)
        + lane / kDirectSide * problem.strideH * plane.width + lane % kDirectSide * problem.strideW;
    float sums[kDirectRowsPerWarp][2] = {};
    TRTKP_NO_UNROLL
    for (; channel < pastChannel; channel += chunk)
    {
        int32_t const count = pastChannel - channel < chunk ? pastChannel - channel : chunk;
        stageChannels<T>(problem, tile, plane, staged, channel, count);
        __syncthreads();
        TRTKP_UNROLL
        for (int32_t i = 0; i < kDirectRowsPerWarp; ++i)
        {
            int32_t const row = warp * kDirectRowsPerWarp + i;
            int32_t const filter = shared.rowFilter[row];
            if (filter >= 0)
            {
                addRow<T>(problem, plane, shared.entries[warp], mine, firstRow + row, filter, channel, count, sums[i]);
            }
        }
        __syncthreads();
    }
    TRTKP_UNROLL
    for (int32_t i = 0; i < kDirectRowsPerWarp; ++i)
    {
        TRTKP_UNROLL
        for (int32_t half = 0; half < 2; ++half)
        {
            int32_t const place = lane + half * kDirectRowsApart * kDirectSide;
            shared.sums[place * kDirectSumsPitch + warp * kDirectRowsPerWarp + i] = sums[i][half];
        }
    }
    __syncthreads();
    storeDirect<T>(problem, shared, tile, rowTile == rowTiles - 1);
}

} // namespace trtkp

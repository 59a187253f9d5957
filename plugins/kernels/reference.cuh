// T0: the reference kernel. It has one thread per output and float64 accumulation, and takes any list, geometry and
// number of groups. It is correct, but not fast: the other kernels are compared with it on a GPU, and it runs layers
// that no other kernel takes.
#pragma once

#include "device.cuh"
#include "epilogue.cuh"
#include "problem.h"

namespace trtkp
{

struct Column
{
    int32_t tap;
    int32_t channel;
};

// The tap and the channel of packed column k of a filter group. Values out of range mean padding.
__device__ __forceinline__ Column columnOf(ConvProblem const& problem, int32_t const* list, int32_t k)
{
    switch (problem.listKind)
    {
    case ListKind::kCHANNELS:
        return {k / problem.listLength, list[k % problem.listLength]};
    case ListKind::kTAPS:
        return {list[k / problem.channels], k % problem.channels};
    case ListKind::kENTRIES:
        break;
    }
    return {list[k] >> 16, list[k] & 0xffff};
}

// The column of the stored value i of a row. Of 2:4 weights, two of every four columns are stored
// (trtkp/graph/two_four.py).
__device__ __forceinline__ int32_t storedColumn(ConvProblem const& problem, int32_t row, int32_t i)
{
    if (problem.metadata == nullptr)
    {
        return i;
    }
    int32_t const step = row / 16 * (problem.storedColumns / 32) + i / 32;
    uint32_t const word = static_cast<uint32_t>(problem.metadata[step * 32 + row % 8 * 4 + i % 32 / 8]);
    return i / 2 * 4 + static_cast<int32_t>(word >> (row % 16 / 8 * 16 + i % 8 * 2) & 3U);
}

// The grid has pixels along x and rows along y, and one more row for the padding channels of the output.
template <typename T>
__device__ __forceinline__ void referenceBlock(ConvProblem const& problem)
{
    int32_t const pixels = problem.batch * problem.outHeight * problem.outWidth;
    int64_t const wide = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (wide >= pixels)
    {
        return;
    }
    int32_t const pixel = static_cast<int32_t>(wide);
    T* const y = static_cast<T*>(problem.y) + pixel * problem.yPitch;
    int32_t const row = blockIdx.y;
    if (row == problem.rows)
    {
        for (int32_t f = problem.filters; f < problem.yPitch; ++f)
        {
            y[f] = fromFloat<T>(0.F);
        }
        return;
    }
    int32_t const filter = problem.rowFilter[row];
    int32_t const group = problem.rowGroup[row];
    if (filter < 0 || filter >= problem.filters || group < 0 || group >= problem.listGroups)
    {
        return;
    }

    int32_t const q = pixel % problem.outWidth;
    int32_t const p = pixel / problem.outWidth % problem.outHeight;
    int32_t const n = pixel / problem.outWidth / problem.outHeight;
    int32_t const firstChannel = filter / (problem.filters / problem.groups) * problem.channels;
    T const* const x = static_cast<T const*>(problem.x) + n * problem.height * problem.width * problem.xPitch;
    T const* const weight = static_cast<T const*>(problem.weight) + row * problem.storedColumns;
    int32_t const* const list = problem.index + group * problem.listLength;
    int32_t const taps = problem.kernelRows * problem.kernelColumns;

    double sum = 0.0;
    for (int32_t i = 0; i < problem.storedColumns; ++i)
    {
        int32_t const k = storedColumn(problem, row, i);
        if (k >= problem.columns)
        {
            continue;
        }
        Column const column = columnOf(problem, list, k);
        if (column.tap < 0 || column.tap >= taps || column.channel < 0 || column.channel >= problem.channels)
        {
            continue;
        }
        int32_t const r = column.tap / problem.kernelColumns;
        int32_t const s = column.tap % problem.kernelColumns;
        int32_t const h = p * problem.strideH - problem.padTop + r * problem.dilationH;
        int32_t const w = q * problem.strideW - problem.padLeft + s * problem.dilationW;
        if (h < 0 || h >= problem.height || w < 0 || w >= problem.width)
        {
            continue;
        }
        int32_t const at = (h * problem.width + w) * problem.xPitch + firstChannel + column.channel;
        sum += static_cast<double>(toFloat(x[at])) * static_cast<double>(toFloat(weight[i]));
    }
    if (problem.bias != nullptr)
    {
        sum += static_cast<double>(toFloat(static_cast<T const*>(problem.bias)[filter]));
    }
    if (problem.residual != nullptr)
    {
        sum += static_cast<double>(
            toFloat(static_cast<T const*>(problem.residual)[pixel * problem.residualPitch + filter]));
    }
    y[filter] = fromFloat<T>(static_cast<float>(activate(sum, problem.activation, problem.alpha)));
}

template <typename T>
__global__ void __launch_bounds__(256) referenceKernel(ConvProblem const problem)
{
    referenceBlock<T>(problem);
}

} // namespace trtkp

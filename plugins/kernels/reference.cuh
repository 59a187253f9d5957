// T0: one thread per output, any list, any geometry, groups, float64 accumulation. Right, not fast: the answer that the
// other kernels are held against on a GPU, and what runs where no other kernel takes the layer.
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

// Tap and channel of packed column k of a filter group. Anything out of range is padding.
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

// Grid: x over pixels, y over rows and, in one more row, the padded channels of the output.
template <typename T>
__global__ void __launch_bounds__(256) referenceKernel(ConvProblem const problem)
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
    T const* const weight = static_cast<T const*>(problem.weight) + row * problem.columns;
    int32_t const* const list = problem.index + group * problem.listLength;
    int32_t const taps = problem.kernelRows * problem.kernelColumns;

    double sum = 0.0;
    for (int32_t k = 0; k < problem.columns; ++k)
    {
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
        sum += static_cast<double>(toFloat(x[at])) * static_cast<double>(toFloat(weight[k]));
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

} // namespace trtkp

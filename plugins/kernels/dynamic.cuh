// Dynamic pattern convolution: every sample has its own weights, the sum of P packed kernels weighted by its attention.
//
// It takes two kernels. The first computes the weights of all samples, and writes the tables of rows that the second
// reads. The second is T0 or T1, with a slice of the grid (blockIdx.z) for every sample. All samples share one list.
#pragma once

#include "device.cuh"
#include "mma.cuh"
#include "problem.h"
#include "reference.cuh"

namespace trtkp
{

// Samples whose weights a thread computes together. The patterns are read once for all of them.
int32_t constexpr kAggregatedSamples = 4;

// weight[n, f, k] = sum over p of attention[n, p, f] * patterns[p, f, k]
//
// A thread computes kWidth columns of a filter for kAggregatedSamples samples (blockIdx.y). kWidth is 1 or fills 16
// bytes.
template <typename T, int32_t kWidth>
__global__ void __launch_bounds__(256) aggregateKernel(DynamicProblem const problem)
{
    ConvProblem const& conv = problem.conv;
    int32_t const chunks = conv.columns / kWidth;
    int64_t const thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (blockIdx.y == 0 && thread < conv.filters)
    {
        problem.rowGroup[thread] = 0;
        problem.rowFilter[thread] = static_cast<int32_t>(thread);
    }
    if (thread >= static_cast<int64_t>(conv.filters) * chunks)
    {
        return;
    }
    int64_t const filter = thread / chunks;
    int64_t const at = filter * conv.columns + thread % chunks * kWidth;
    int64_t const perKernel = static_cast<int64_t>(conv.filters) * conv.columns;
    int32_t const firstSample = blockIdx.y * kAggregatedSamples;

    float sums[kAggregatedSamples][kWidth] = {};
    TRTKP_NO_UNROLL
    for (int32_t p = 0; p < problem.patterns; ++p)
    {
        T const* const from = static_cast<T const*>(problem.kernels) + p * perKernel + at;
        alignas(16) T values[kWidth];
        if constexpr (kWidth > 1)
        {
            *reinterpret_cast<uint4*>(values) = *reinterpret_cast<uint4 const*>(from);
        }
        else
        {
            values[0] = *from;
        }
        TRTKP_UNROLL
        for (int32_t s = 0; s < kAggregatedSamples; ++s)
        {
            if (firstSample + s < problem.samples)
            {
                int64_t const row = static_cast<int64_t>(firstSample + s) * problem.patterns + p;
                float const share = toFloat(static_cast<T const*>(problem.attention)[row * conv.filters + filter]);
                TRTKP_UNROLL
                for (int32_t i = 0; i < kWidth; ++i)
                {
                    sums[s][i] += share * toFloat(values[i]);
                }
            }
        }
    }
    TRTKP_UNROLL
    for (int32_t s = 0; s < kAggregatedSamples; ++s)
    {
        if (firstSample + s < problem.samples)
        {
            alignas(16) T results[kWidth];
            TRTKP_UNROLL
            for (int32_t i = 0; i < kWidth; ++i)
            {
                results[i] = fromFloat<T>(sums[s][i]);
            }
            T* const to = static_cast<T*>(problem.weight) + (firstSample + s) * perKernel + at;
            if constexpr (kWidth > 1)
            {
                *reinterpret_cast<uint4*>(to) = *reinterpret_cast<uint4 const*>(results);
            }
            else
            {
                *to = results[0];
            }
        }
    }
}

// The convolution of sample blockIdx.z.
template <typename T>
__device__ __forceinline__ ConvProblem problemOfSample(DynamicProblem const& problem)
{
    ConvProblem one = problem.conv;
    int64_t const n = blockIdx.z;
    int64_t const pixels = static_cast<int64_t>(one.outHeight) * one.outWidth;
    one.x = static_cast<T const*>(one.x) + n * one.height * one.width * one.xPitch;
    one.weight = static_cast<T const*>(one.weight) + n * one.filters * one.columns;
    one.residual
        = one.residual == nullptr ? nullptr : static_cast<T const*>(one.residual) + n * pixels * one.residualPitch;
    one.y = static_cast<T*>(one.y) + n * pixels * one.yPitch;
    return one;
}

template <typename T>
__global__ void __launch_bounds__(256) dynamicReferenceKernel(DynamicProblem const problem)
{
    ConvProblem const one = problemOfSample<T>(problem);
    referenceBlock<T>(one);
}

template <typename Tile, typename T>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocksPerSm) dynamicMmaKernel(DynamicProblem const problem)
{
    ConvProblem const one = problemOfSample<T>(problem);
    mmaBlock<Tile, T>(one);
}

} // namespace trtkp

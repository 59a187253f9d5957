// The end of a kernel: bias, residual, activation and stores for eight sums of one pixel.
#pragma once

#include "device.cuh"
#include "epilogue.cuh"
#include "problem.h"

namespace trtkp
{

// The first of eight rows' filters, if these are consecutive and start at a multiple of 8, so that one 16-byte access
// covers them; otherwise -1.
__device__ __forceinline__ int32_t firstOfEight(int32_t const* rowFilter)
{
    bool isConsecutive = rowFilter[0] >= 0 && rowFilter[0] % 8 == 0;
    for (int32_t i = 1; i < 8; ++i)
    {
        isConsecutive = isConsecutive && rowFilter[i] == rowFilter[0] + i;
    }
    return isConsecutive ? rowFilter[0] : -1;
}

// The same for the tensors of a problem, whose pitches may rule out 16-byte accesses.
__device__ __forceinline__ int32_t firstOfEight(ConvProblem const& problem, int32_t const* rowFilter)
{
    bool const isAligned = problem.yPitch % 8 == 0 && problem.residualPitch % 8 == 0;
    return isAligned ? firstOfEight(rowFilter) : -1;
}

// Eight elements, loaded and stored with 16-byte accesses. Loading from null gives zeros.
template <typename T>
struct alignas(16) Eight
{
    T values[8];

    __device__ __forceinline__ void load(T const* from)
    {
        TRTKP_UNROLL
        for (int32_t i = 0; i < kAccesses; ++i)
        {
            reinterpret_cast<uint4*>(values)[i]
                = from == nullptr ? uint4{0, 0, 0, 0} : reinterpret_cast<uint4 const*>(from)[i];
        }
    }

    __device__ __forceinline__ void store(T* to) const
    {
        TRTKP_UNROLL
        for (int32_t i = 0; i < kAccesses; ++i)
        {
            reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<uint4 const*>(values)[i];
        }
    }

private:
    static constexpr int32_t kAccesses = sizeof(T) / 2;
};

// Bias, residual, activation and stores for eight rows of one pixel.
template <typename T>
__device__ __forceinline__ void storeChunk(
    ConvProblem const& problem, float const* sums, int32_t pixel, int32_t firstFilter, int32_t const* rowFilter)
{
    T const* const bias = static_cast<T const*>(problem.bias);
    T const* const residual = static_cast<T const*>(problem.residual) + pixel * problem.residualPitch;
    T* const y = static_cast<T*>(problem.y) + pixel * problem.yPitch;
    if (firstFilter < 0)
    {
        TRTKP_NO_UNROLL
        for (int32_t i = 0; i < 8; ++i)
        {
            int32_t const filter = rowFilter[i];
            if (filter >= 0)
            {
                float value = sums[i];
                value += bias == nullptr ? 0.F : toFloat(bias[filter]);
                value += problem.residual == nullptr ? 0.F : toFloat(residual[filter]);
                y[filter] = fromFloat<T>(activate(value, problem.activation, problem.alpha));
            }
        }
        return;
    }
    Eight<T> biases;
    Eight<T> residuals;
    Eight<T> results;
    biases.load(bias == nullptr ? nullptr : bias + firstFilter);
    residuals.load(problem.residual == nullptr ? nullptr : residual + firstFilter);
    float values[8];
    TRTKP_UNROLL
    for (int32_t i = 0; i < 8; ++i)
    {
        values[i] = sums[i] + toFloat(biases.values[i]) + toFloat(residuals.values[i]);
    }
    activateAll(values, problem.activation, problem.alpha);
    TRTKP_UNROLL
    for (int32_t i = 0; i < 8; ++i)
    {
        results.values[i] = fromFloat<T>(values[i]);
    }
    results.store(y + firstFilter);
}

// Stores eight sums as they are, for the kernel that adds the splits.
__device__ __forceinline__ void storePartial(ConvProblem const& problem, float const* sums, int32_t pixel, int32_t row)
{
    int64_t const pixels = problem.batch * problem.outHeight * problem.outWidth;
    float* const to = problem.partial + (blockIdx.y * pixels + pixel) * problem.partialPitch + row;
    TRTKP_UNROLL
    for (int32_t i = 0; i < 2; ++i)
    {
        reinterpret_cast<float4*>(to)[i] = reinterpret_cast<float4 const*>(sums)[i];
    }
}

template <typename T>
__device__ __forceinline__ void clearPaddedChannels(ConvProblem const& problem, int32_t pixel)
{
    T* const y = static_cast<T*>(problem.y) + pixel * problem.yPitch;
    for (int32_t f = problem.filters; f < problem.yPitch; ++f)
    {
        y[f] = fromFloat<T>(0.F);
    }
}

} // namespace trtkp

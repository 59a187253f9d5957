// The second kernel of a split K loop: it adds the partial sums of the blocks, always in the same order, and applies
// the epilogue. The fixed order makes results reproducible, which atomic additions would not.
#pragma once

#include "device.cuh"
#include "problem.h"
#include "store.cuh"

namespace trtkp
{

// One thread computes eight rows of one pixel.
template <typename T>
__global__ void __launch_bounds__(256) splitKernel(ConvProblem const problem)
{
    int64_t const pixels = problem.batch * problem.outHeight * problem.outWidth;
    int32_t const eights = (problem.rows + 7) / 8;
    int64_t const thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (thread >= pixels * eights)
    {
        return;
    }
    int32_t const pixel = static_cast<int32_t>(thread / eights);
    int32_t const eight = static_cast<int32_t>(thread % eights);

    float sums[8] = {};
    TRTKP_NO_UNROLL
    for (int32_t split = 0; split < problem.splits; ++split)
    {
        float const* const from = problem.partial + (split * pixels + pixel) * problem.partialPitch + eight * 8;
        float4 const low = reinterpret_cast<float4 const*>(from)[0];
        float4 const high = reinterpret_cast<float4 const*>(from)[1];
        float const values[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
        TRTKP_UNROLL
        for (int32_t i = 0; i < 8; ++i)
        {
            sums[i] += values[i];
        }
    }
    int32_t rowFilter[8];
    TRTKP_UNROLL
    for (int32_t i = 0; i < 8; ++i)
    {
        int32_t const row = eight * 8 + i;
        int32_t const filter = row < problem.rows ? problem.rowFilter[row] : -1;
        rowFilter[i] = filter < problem.filters ? filter : -1;
    }
    storeChunk<T>(problem, sums, pixel, firstOfEight(problem, rowFilter), rowFilter);
    if (eight == eights - 1)
    {
        clearPaddedChannels<T>(problem, pixel);
    }
}

} // namespace trtkp

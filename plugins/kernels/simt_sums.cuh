// The sums of a warp in float32 on the CUDA cores.
//
// The lanes of a warp are arranged as 4 x 8 (pixels x rows). A lane's pixels are 4 apart and its rows 8 apart, so that
// the lanes read neighbouring rows of shared memory, which the swizzle puts into different banks.
#pragma once

#include "device.cuh"
#include "gemm.cuh"

namespace trtkp
{

template <typename Tile>
class SimtSums
{
public:
    __device__ __forceinline__ SimtSums(int32_t warpPixel, int32_t warpRow)
        : mPixel{warpPixel + static_cast<int32_t>(threadIdx.x) % 4}
        , mRow{warpRow + static_cast<int32_t>(threadIdx.x) % 32 / 4}
    {
    }

    __device__ __forceinline__ void multiply(unsigned char const* stage)
    {
        unsigned char const* const a = stage;
        unsigned char const* const b = stage + Tile::kM * Tile::kRowBytes;
        TRTKP_NO_UNROLL
        for (int32_t chunk = 0; chunk < Tile::kChunks; ++chunk)
        {
            float4 pixels[kPixels];
            TRTKP_UNROLL
            for (int32_t i = 0; i < kPixels; ++i)
            {
                pixels[i] = *reinterpret_cast<float4 const*>(a + swizzled128(mPixel + i * 4, chunk));
            }
            TRTKP_UNROLL
            for (int32_t j = 0; j < kRows; ++j)
            {
                float4 const row = *reinterpret_cast<float4 const*>(b + swizzled128(mRow + j * 8, chunk));
                TRTKP_UNROLL
                for (int32_t i = 0; i < kPixels; ++i)
                {
                    float& sum = mSums[i][j];
                    sum = fmaf(pixels[i].x, row.x, sum);
                    sum = fmaf(pixels[i].y, row.y, sum);
                    sum = fmaf(pixels[i].z, row.z, sum);
                    sum = fmaf(pixels[i].w, row.w, sum);
                }
            }
        }
    }

    friend __device__ __forceinline__ void stageSlab(SimtSums const& sums, int32_t slab, float* staging, int32_t lane)
    {
        TRTKP_UNROLL
        for (int32_t i = 0; i < 4; ++i)
        {
            TRTKP_UNROLL
            for (int32_t j = 0; j < kRows; ++j)
            {
                staging[(lane % 4 + i * 4) * Tile::kStagingPitch + lane / 4 + j * 8] = sums.mSums[slab * 4 + i][j];
            }
        }
    }

private:
    static constexpr int32_t kPixels = Tile::kWarpM / 4;
    static constexpr int32_t kRows = Tile::kWarpN / 8;

    int32_t mPixel, mRow;
    float mSums[kPixels][kRows] = {};
};

} // namespace trtkp

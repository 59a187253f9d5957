// The sums of a warp on tensor cores: m16n8k16 for fp16 and bf16, m16n8k8 with TF32 values for float32. Both read
// fragments of 16 rows x 32 bytes, so only the instruction differs.
#pragma once

#include "device.cuh"
#include "gemm.cuh"
#include "ptx.cuh"

namespace trtkp
{

template <typename Tile, typename T>
class TensorSums
{
public:
    __device__ __forceinline__ TensorSums(int32_t warpPixel, int32_t warpRow)
    {
        int32_t const lane = threadIdx.x % 32;
        // Pixels 0-7 and 8-15, then the same in the second chunk: the order of a0 to a3 in mma.
        mLaneA = swizzled128(warpPixel + lane % 16, lane / 16);
        // Both chunks of rows 0-7, then of rows 8-15: b0 and b1 of two mma instructions.
        mLaneB = Tile::kM * Tile::kRowBytes + swizzled128(warpRow + lane / 16 * 8 + lane % 8, lane / 8 % 2);
    }

    __device__ __forceinline__ void multiply(unsigned char const* stage)
    {
        TRTKP_UNROLL
        for (int32_t k = 0; k < Tile::kChunks / 2; ++k)
        {
            uint32_t fragmentA[Tile::kWarpM / 16][4];
            uint32_t fragmentB[Tile::kWarpN / 16][4];
            // The addresses of chunks 2k and 2k + 1 differ from those of 0 and 1 in two bits, so an XOR is enough.
            TRTKP_UNROLL
            for (int32_t i = 0; i < Tile::kWarpM / 16; ++i)
            {
                load(fragmentA[i], stage + (mLaneA ^ (k << 5)) + i * 16 * Tile::kRowBytes);
            }
            TRTKP_UNROLL
            for (int32_t j = 0; j < Tile::kWarpN / 16; ++j)
            {
                load(fragmentB[j], stage + (mLaneB ^ (k << 5)) + j * 16 * Tile::kRowBytes);
            }
            TRTKP_UNROLL
            for (int32_t i = 0; i < Tile::kWarpM / 16; ++i)
            {
                TRTKP_UNROLL
                for (int32_t j = 0; j < Tile::kWarpN / 8; ++j)
                {
                    uint32_t const* const pair = fragmentB[j / 2] + j % 2 * 2;
                    multiplyFragments(mSums.values[i][j], fragmentA[i], pair[0], pair[1]);
                }
            }
        }
    }

    friend __device__ __forceinline__ void stageSlab(TensorSums const& sums, int32_t slab, float* staging, int32_t lane)
    {
        stageSlab(sums.mSums, slab, staging, lane);
    }

private:
    static constexpr bool kIsTf32 = sizeof(T) == 4;

    static __device__ __forceinline__ void load(uint32_t (&fragment)[4], void const* row)
    {
        ptx::loadMatrixX4(fragment, row);
        if constexpr (kIsTf32)
        {
            TRTKP_UNROLL
            for (int32_t i = 0; i < 4; ++i)
            {
                fragment[i] = ptx::roundToTf32(fragment[i]);
            }
        }
    }

    static __device__ __forceinline__ void multiplyFragments(
        float (&d)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1)
    {
        if constexpr (kIsTf32)
        {
            ptx::mmaM16N8K8(d, a, b0, b1);
        }
        else
        {
            ptx::mmaM16N8K16<T>(d, a, b0, b1);
        }
    }

    int32_t mLaneA, mLaneB; // addresses at k = 0, in bytes from the start of a stage
    Accumulators<Tile> mSums{};
};

} // namespace trtkp

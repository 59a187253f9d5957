// The loader of gemm.cuh that gathers single elements, for any list, any C and any pitch.
#pragma once

#include "device.cuh"
#include "gemm.cuh"
#include "ptx.cuh"

#include <type_traits>

namespace trtkp
{

// A warp fills whole rows of A. Its lanes take the columns of a step, which are neighbouring entries of the list. So
// one access of a warp touches few sectors of x: at density d, 32 entries lie within about 32 / d channels of one
// pixel. If the lanes took pixels, an access would touch 32 sectors.
template <typename Tile, typename T>
class SingleLoader
{
public:
    static constexpr int32_t kColumnsPerUnit = 1;
    static constexpr int32_t kUnitsPerStep = Tile::kRowBytes / sizeof(T);
    static constexpr int32_t kColumnsPerStep = kUnitsPerStep;

    __device__ __forceinline__ SingleLoader(ConvProblem const& problem, GemmShared<Tile>& shared)
        : mShared{shared}
        , mX{static_cast<Raw const*>(problem.x)}
        , mWeight{static_cast<Raw const*>(problem.weight)}
        , mColumns{problem.columns}
        , mLane{static_cast<int32_t>(threadIdx.x) % 32}
        , mWarp{static_cast<int32_t>(threadIdx.x) / 32}
    {
    }

    __device__ __forceinline__ void select(Run const& run)
    {
        mRun = run;
    }

    // Issues the loads of a step: A goes into registers, where it waits during the multiplication, B to shared memory.
    __device__ __forceinline__ void fetch(int32_t step, int32_t stage)
    {
        Unit units[kPerWord];
        TRTKP_UNROLL
        for (int32_t e = 0; e < kPerWord; ++e)
        {
            units[e] = unitAt(mShared, step * kUnitsPerStep + mLane * kPerWord + e);
        }
        TRTKP_UNROLL
        for (int32_t i = 0; i < kRowsA; ++i)
        {
            PixelPlace const pixel = mShared.pixels[mWarp * kRowsA + i];
            TRTKP_UNROLL
            for (int32_t e = 0; e < kPerWord; ++e)
            {
                bool const isInside = (pixel.outside & units[e].bits) == 0;
                mElements[i][e] = isInside ? mX[pixel.at + units[e].at] : 0U;
            }
        }
        unsigned char* const b = mShared.stages[stage] + Tile::kM * Tile::kRowBytes;
        int32_t const firstColumn = mRun.firstColumn + step * kColumnsPerStep;
        if (mColumns % kPerChunk == 0)
        {
            copyChunks(b, firstColumn);
        }
        else
        {
            copyWords(b, firstColumn);
        }
    }

    // Writes the elements that have arrived in registers to the stage of A.
    __device__ __forceinline__ void store(int32_t stage)
    {
        TRTKP_UNROLL
        for (int32_t i = 0; i < kRowsA; ++i)
        {
            *wordAt(mShared.stages[stage], mWarp * kRowsA + i) = packed(mElements[i]);
        }
    }

private:
    static constexpr int32_t kPerWord = 4 / sizeof(T);
    static constexpr int32_t kPerChunk = 16 / sizeof(T);
    static constexpr int32_t kRowsA = Tile::kM / Tile::kWarps;
    static constexpr int32_t kRowsB = Tile::kN / Tile::kWarps;
    static_assert(Tile::kM % Tile::kWarps == 0 && Tile::kN % Tile::kWarps == 0, "warps share rows evenly");

    // Elements are only moved, so they are treated as integers.
    using Raw = std::conditional_t<sizeof(T) == 2, uint16_t, uint32_t>;

    static __device__ __forceinline__ uint32_t packed(uint32_t const (&elements)[kPerWord])
    {
        uint32_t word = elements[0];
        if constexpr (kPerWord == 2)
        {
            word |= elements[1] << 16;
        }
        return word;
    }

    __device__ __forceinline__ uint32_t* wordAt(unsigned char* rows, int32_t row) const
    {
        return reinterpret_cast<uint32_t*>(rows + swizzled128(row, mLane / 4) + mLane % 4 * 4);
    }

    __device__ __forceinline__ bool isSelected(int32_t row) const
    {
        return row >= mRun.rows.begin && row < mRun.rows.end;
    }

    // Copies rows of weight whose length is a multiple of 16 bytes.
    __device__ __forceinline__ void copyChunks(unsigned char* b, int32_t firstColumn)
    {
        int32_t const chunk = static_cast<int32_t>(threadIdx.x) % Tile::kChunks;
        int32_t const column = firstColumn + chunk * kPerChunk;
        TRTKP_UNROLL
        for (int32_t row = threadIdx.x / Tile::kChunks; row < Tile::kN; row += Tile::kRowsPerPass)
        {
            bool const ignore = column >= mColumns || !isSelected(row);
            int32_t const at = ignore ? 0 : (mRun.firstRow + row) * mColumns + column;
            ptx::copyAsync16Unless(ignore ? 1U : 0U, b + swizzled128(row, chunk), mWeight + at);
        }
    }

    // Copies rows of weight of any length.
    __device__ __forceinline__ void copyWords(unsigned char* b, int32_t firstColumn)
    {
        TRTKP_NO_UNROLL
        for (int32_t row = mWarp * kRowsB; row < (mWarp + 1) * kRowsB; ++row)
        {
            uint32_t elements[kPerWord];
            TRTKP_UNROLL
            for (int32_t e = 0; e < kPerWord; ++e)
            {
                int32_t const column = firstColumn + mLane * kPerWord + e;
                bool const exists = column < mColumns && isSelected(row);
                elements[e] = exists ? mWeight[(mRun.firstRow + row) * mColumns + column] : 0U;
            }
            *wordAt(b, row) = packed(elements);
        }
    }

    GemmShared<Tile>& mShared;
    Raw const* mX;
    Raw const* mWeight;
    int32_t mColumns, mLane, mWarp;
    Run mRun{};
    uint32_t mElements[kRowsA][kPerWord];
};

} // namespace trtkp

// The loader of gemm.cuh for lists in blocks of eight channels: it gathers 16 bytes at a time with cp.async. C must be
// a multiple of 8.
#pragma once

#include "device.cuh"
#include "gemm.cuh"
#include "ptx.cuh"

namespace trtkp
{

// Every thread copies one chunk of every kRowsPerPass-th row of A and of B.
template <typename Tile, typename T>
class BlockLoader
{
public:
    static constexpr int32_t kColumnsPerUnit = 16 / sizeof(T);
    static constexpr int32_t kUnitsPerStep = Tile::kChunks;
    static constexpr int32_t kColumnsPerStep = kColumnsPerUnit * kUnitsPerStep;

    __device__ __forceinline__ BlockLoader(ConvProblem const& problem, GemmShared<Tile>& shared)
        : mShared{shared}
        , mX{static_cast<T const*>(problem.x)}
        , mWeight{static_cast<T const*>(problem.weight)}
        , mColumns{problem.columns}
    {
        int32_t const chunk = static_cast<int32_t>(threadIdx.x) % Tile::kChunks;
        int32_t const row = static_cast<int32_t>(threadIdx.x) / Tile::kChunks;
        mAtStage = swizzled128(row, chunk);
        TRTKP_UNROLL
        for (int32_t i = 0; i < kPassesA; ++i)
        {
            mPixels[i] = shared.pixels[row + i * Tile::kRowsPerPass];
        }
    }

    __device__ __forceinline__ void select(Run const& run)
    {
        int32_t const chunk = static_cast<int32_t>(threadIdx.x) % Tile::kChunks;
        mColumn = run.firstColumn + chunk * kColumnsPerUnit;
        mOtherRows = 0;
        TRTKP_UNROLL
        for (int32_t i = 0; i < kPassesB; ++i)
        {
            int32_t const row = static_cast<int32_t>(threadIdx.x) / Tile::kChunks + i * Tile::kRowsPerPass;
            bool const isSelected = row >= run.rows.begin && row < run.rows.end;
            mOtherRows |= isSelected ? 0U : 1U << i;
            mAtB[i] = isSelected ? (run.firstRow + row) * mColumns : 0;
        }
    }

    // Issues the copies of a step. Steps must be fetched in order, as the column of the weight only moves on.
    __device__ __forceinline__ void fetch(int32_t step, int32_t stage)
    {
        unsigned char* const a = mShared.stages[stage] + mAtStage;
        Unit const unit = unitAt(mShared, step * kUnitsPerStep + static_cast<int32_t>(threadIdx.x) % Tile::kChunks);
        TRTKP_UNROLL
        for (int32_t i = 0; i < kPassesA; ++i)
        {
            ptx::copyAsync16Unless(mPixels[i].outside & unit.bits, a + i * kPassBytes, mX + (mPixels[i].at + unit.at));
        }
        unsigned char* const b = a + Tile::kM * Tile::kRowBytes;
        uint32_t const ignored = mColumn < mColumns ? mOtherRows : 0xffffffffU;
        TRTKP_UNROLL
        for (int32_t i = 0; i < kPassesB; ++i)
        {
            bool const isPartial = Tile::kN % Tile::kRowsPerPass != 0;
            if (!isPartial || static_cast<int32_t>(threadIdx.x) / Tile::kChunks + i * Tile::kRowsPerPass < Tile::kN)
            {
                ptx::copyAsync16Unless(ignored & 1U << i, b + i * kPassBytes, mWeight + (mAtB[i] + mColumn));
            }
        }
        mColumn += kColumnsPerStep;
    }

    // Nothing to do: cp.async writes to shared memory by itself. SingleLoader stores from registers here.
    __device__ __forceinline__ void store(int32_t) {}

private:
    static constexpr int32_t kPassesA = Tile::kM / Tile::kRowsPerPass;
    static constexpr int32_t kPassesB = (Tile::kN + Tile::kRowsPerPass - 1) / Tile::kRowsPerPass;
    static constexpr int32_t kPassBytes = Tile::kRowsPerPass * Tile::kRowBytes;

    GemmShared<Tile>& mShared;
    T const* mX;
    T const* mWeight;
    int32_t mColumns;
    int32_t mAtStage; // place of the thread's first chunk of A, in bytes from the start of a stage
    int32_t mColumn;
    uint32_t mOtherRows; // bit i is set if row i of the thread's rows of B does not belong to the run
    PixelPlace mPixels[kPassesA];
    int32_t mAtB[kPassesB];
};

} // namespace trtkp

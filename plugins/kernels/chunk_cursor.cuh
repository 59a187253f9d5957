// Walks the packed columns of one filter group in chunks of eight: lists of blocks of eight consecutive channels.
#pragma once

#include "device.cuh"
#include "problem.h"

namespace trtkp
{

// A chunk of eight columns: one tap and the first of eight channels, a multiple of 8 (one 16-byte copy).
struct Chunk
{
    int32_t tap;     // always a tap of the kernel, so that it may index a table
    int32_t channel; // a multiple of 8; at or beyond C: padding, read nothing
};

// One thread's walk over a list, from a first column (a multiple of 8) in steps of kStep columns. The entry of the next
// step is read one step ahead of its use, so that no copy waits for the list. A list that is not what the C interface
// was promised (out of range, blocks that start off a multiple of 8) gives wrong values, never an address out of range.
template <int32_t kStep>
class ChunkCursor
{
public:
    __device__ __forceinline__ ChunkCursor(ConvProblem const& problem, int32_t group, int32_t firstColumn)
        : mList{problem.index + group * problem.listLength}
        , mKind{problem.listKind}
        , mTaps{problem.kernelRows * problem.kernelColumns}
        , mPastLast{(problem.channels + 7) & ~7}
    {
        mInnerLength = mKind == ListKind::kTAPS ? problem.channels : problem.listLength;
        mOuterLength = problem.columns / mInnerLength;
        mOuter = firstColumn / mInnerLength;
        mInner = firstColumn % mInnerLength;
        fetch();
    }

    // The chunk at the current position; moves one step on.
    __device__ __forceinline__ Chunk next()
    {
        Chunk chunk{};
        switch (mKind)
        {
        case ListKind::kCHANNELS:
            chunk = {mFetchedOuter, mEntry};
            break;
        case ListKind::kTAPS:
            chunk = {mEntry, mFetchedInner};
            break;
        case ListKind::kENTRIES:
            chunk = {mEntry >> 16, mEntry & 0xffff};
            break;
        }
        bool const isPadding = !mHasEntry || chunk.tap < 0 || chunk.tap >= mTaps || chunk.channel < 0;
        chunk.tap = isPadding ? 0 : chunk.tap;
        chunk.channel = isPadding ? mPastLast : chunk.channel & ~7;

        mInner += kStep;
        while (mInner >= mInnerLength)
        {
            mInner -= mInnerLength;
            ++mOuter;
        }
        fetch();
        return chunk;
    }

private:
    __device__ __forceinline__ void fetch()
    {
        mHasEntry = mOuter < mOuterLength;
        mFetchedOuter = mOuter;
        mFetchedInner = mInner;
        mEntry = mHasEntry ? mList[mKind == ListKind::kTAPS ? mOuter : mInner] : 0;
    }

    int32_t const* mList;
    ListKind mKind;
    int32_t mTaps;
    int32_t mPastLast;                  // a channel that is padding, a multiple of 8: addresses stay aligned
    int32_t mInnerLength, mOuterLength; // columns run over the inner index first: channels, or whole entries
    int32_t mInner, mOuter;
    int32_t mEntry, mFetchedInner, mFetchedOuter;
    bool mHasEntry;
};

} // namespace trtkp

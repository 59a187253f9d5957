// The walk over the packed columns of one filter group in chunks of eight, for lists in blocks of eight channels.
#pragma once

#include "device.cuh"
#include "problem.h"

namespace trtkp
{

// A chunk of eight columns, which one 16-byte copy loads: a tap, and the first of eight consecutive channels.
struct Chunk
{
    int32_t tap;     // always a tap of the kernel, so that it can index a table
    int32_t channel; // a multiple of 8; C or more for padding, of which nothing is read
};

// One thread's walk over a list, from a first column (a multiple of 8) in steps of kStep columns. The entry for the
// next step is read one step ahead, so that no copy waits for the list. A list that breaks its promise to the C
// interface (entries out of range, blocks that do not start at a multiple of 8) gives wrong values, but never an
// address outside the tensor.
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

    // Returns the chunk at the current position, and moves on by one step.
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
    int32_t mPastLast;                  // a padding channel that is a multiple of 8, so that addresses stay aligned
    int32_t mInnerLength, mOuterLength; // columns run over the inner index first: channels, or whole entries
    int32_t mInner, mOuter;
    int32_t mEntry, mFetchedInner, mFetchedOuter;
    bool mHasEntry;
};

} // namespace trtkp

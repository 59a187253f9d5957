// A layer with known shapes, as the C interface takes it. Calls are values: making and copying one allocates nothing.
#pragma once

#include "../capi/trtkp.h"
#include "shapes.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <variant>

namespace trtkp::glue
{

// Numbers of tactics, without memory of its own.
class Tactics
{
public:
    [[nodiscard]] int32_t const* begin() const
    {
        return mNumbers.data();
    }

    [[nodiscard]] int32_t const* end() const
    {
        return mNumbers.data() + mCount;
    }

    [[nodiscard]] int32_t size() const
    {
        return mCount;
    }

    [[nodiscard]] bool has(int32_t tactic) const
    {
        return std::find(begin(), end(), tactic) != end();
    }

    template <typename Predicate>
    void keepIf(Predicate const& isKept)
    {
        auto* const first = mNumbers.data();
        auto* const last = std::remove_if(first, first + mCount, [&](int32_t tactic) { return !isKept(tactic); });
        mCount = static_cast<int32_t>(last - first);
    }

    // Fills itself by a function of the C interface.
    template <typename Desc, typename Function>
    void fill(Function const& function, Desc const& desc)
    {
        requireOk(function(&desc, mNumbers.data(), TRTKP_TACTIC_COUNT, &mCount));
    }

private:
    std::array<int32_t, TRTKP_TACTIC_COUNT> mNumbers{};
    int32_t mCount{0};
};

// What a call can answer from its description alone. It is the same for both descriptions of the C interface.
template <typename Desc, auto kTactics, auto kWorkspaceBytes>
class DescribedCall
{
public:
    explicit DescribedCall(Desc const& desc)
        : mDesc{desc}
    {
    }

    // The tactics that can compute the layer, by their numbers in the C interface.
    [[nodiscard]] Tactics tactics() const
    {
        Tactics tactics;
        tactics.fill(kTactics, mDesc);
        return tactics;
    }

    // Throws Error if the tactic cannot compute the layer.
    [[nodiscard]] size_t workspaceBytes(int32_t tactic) const
    {
        size_t bytes = 0;
        requireOk(kWorkspaceBytes(&mDesc, tactic, &bytes));
        return bytes;
    }

protected:
    Desc mDesc;
};

// A convolution with static lists.
class ListedCall : public DescribedCall<trtkpConvDesc, trtkpConvTactics, trtkpConvWorkspaceBytes>
{
public:
    using DescribedCall::DescribedCall;

    // Launches a tactic. Inputs are in the operator's order. It allocates nothing, except an exception if it fails.
    void launch(int32_t tactic, void const* const* inputs, void* output, void* workspace, size_t bytes,
        cudaStream_t stream) const;
};

// A convolution with a dynamic pattern.
class DynamicCall : public DescribedCall<trtkpDynamicDesc, trtkpDynamicTactics, trtkpDynamicWorkspaceBytes>
{
public:
    using DescribedCall::DescribedCall;

    // As that of ListedCall.
    void launch(int32_t tactic, void const* const* inputs, void* output, void* workspace, size_t bytes,
        cudaStream_t stream) const;
};

using Call = std::variant<ListedCall, DynamicCall>;

} // namespace trtkp::glue

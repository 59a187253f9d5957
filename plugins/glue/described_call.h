// What a call can answer from its description alone. It is the same for both descriptions of the C interface.
#pragma once

#include "family.h"
#include "shapes.h"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace trtkp::glue
{

template <typename Desc, auto kTactics, auto kWorkspaceBytes>
class DescribedCall : public Call
{
public:
    explicit DescribedCall(Desc const& desc)
        : mDesc{desc}
    {
    }

    [[nodiscard]] std::vector<int32_t> tactics() const override
    {
        std::vector<int32_t> numbers(TRTKP_TACTIC_COUNT);
        int32_t count = 0;
        requireOk(kTactics(&mDesc, numbers.data(), TRTKP_TACTIC_COUNT, &count));
        numbers.resize(count);
        return numbers;
    }

    [[nodiscard]] size_t workspaceBytes(int32_t tactic) const override
    {
        size_t bytes = 0;
        requireOk(kWorkspaceBytes(&mDesc, tactic, &bytes));
        return bytes;
    }

protected:
    Desc mDesc;
};

} // namespace trtkp::glue

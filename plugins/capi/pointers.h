// Checks of the tensors that a launch is given.
#pragma once

#include "error.h"
#include "layer.h"

#include <cstdint>

namespace trtkp::capi
{

int32_t constexpr kAlignment = 16;

inline int64_t pixelCount(ConvProblem const& problem)
{
    return static_cast<int64_t>(problem.batch) * problem.outHeight * problem.outWidth;
}

inline void requirePointer(char const* name, void const* pointer, int32_t alignment)
{
    require(pointer != nullptr, name, " is null");
    require(reinterpret_cast<uintptr_t>(pointer) % alignment == 0, name, " is not aligned to ", alignment, " bytes");
}

inline void requireApart(char const* name, void const* pointer, int64_t bytes, void const* y, int64_t yBytes)
{
    auto const first = reinterpret_cast<uintptr_t>(pointer);
    auto const second = reinterpret_cast<uintptr_t>(y);
    require(pointer == nullptr || first + bytes <= second || second + yBytes <= first, "y overlaps ", name);
}

} // namespace trtkp::capi

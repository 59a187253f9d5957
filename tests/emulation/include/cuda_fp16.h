// __half for a C++ compiler that may have no 16-bit floating type.
#pragma once

#include "cuda_runtime.h"

struct __half
{
    uint16_t bits;
};

namespace emulation
{

inline float asFloat(uint32_t bits)
{
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

inline uint32_t asBits(float value)
{
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    return bits;
}

} // namespace emulation

inline float __half2float(__half half)
{
    uint32_t const sign = static_cast<uint32_t>(half.bits & 0x8000U) << 16;
    uint32_t const exponent = half.bits >> 10 & 0x1fU;
    uint32_t const fraction = half.bits & 0x3ffU;
    if (exponent == 0x1f)
    {
        return emulation::asFloat(sign | 0x7f800000U | fraction << 13);
    }
    if (exponent == 0)
    {
        float const magnitude = std::ldexp(static_cast<float>(fraction), -24);
        return sign != 0 ? -magnitude : magnitude;
    }
    return emulation::asFloat(sign | (exponent + 112) << 23 | fraction << 13);
}

inline __half __float2half_rn(float value)
{
    uint32_t const bits = emulation::asBits(value);
    auto const sign = static_cast<uint16_t>(bits >> 16 & 0x8000U);
    float const magnitude = std::fabs(value);
    if (std::isnan(value))
    {
        return {0x7fff};
    }
    if (magnitude >= 65520.F) // halfway between the largest half and the next power of two
    {
        return {static_cast<uint16_t>(sign | 0x7c00U)};
    }
    // One unit in the last place of the half that holds the magnitude; nearbyint rounds half to even.
    int const exponent = magnitude < 0x1p-14F ? -14 : std::ilogb(magnitude);
    auto const units = static_cast<uint32_t>(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));
    // A carry out of the fraction moves into the exponent by itself.
    uint32_t const biased = magnitude < 0x1p-14F ? units : static_cast<uint32_t>(exponent + 14) * 1024 + units;
    return {static_cast<uint16_t>(sign | biased)};
}

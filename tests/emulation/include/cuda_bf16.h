// __nv_bfloat16 for a C++ compiler.
#pragma once

#include "cuda_fp16.h"

struct __nv_bfloat16
{
    uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 value)
{
    return emulation::asFloat(static_cast<uint32_t>(value.bits) << 16);
}

inline __nv_bfloat16 __float2bfloat16_rn(float value)
{
    uint32_t const bits = emulation::asBits(value);
    if (std::isnan(value))
    {
        return {0x7fff};
    }
    uint32_t const odd = bits >> 16 & 1U;
    return {static_cast<uint16_t>((bits + 0x7fffU + odd) >> 16)};
}

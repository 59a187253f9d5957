// The activations at the end of a convolution, computed in the type of its accumulator.
#pragma once

#include "device.cuh"
#include "problem.h"

namespace trtkp
{

__device__ __forceinline__ float exponential(float value)
{
    return expf(value);
}

__device__ __forceinline__ double exponential(double value)
{
    return exp(value);
}

// Comparisons are written such that NaN stays NaN, as in ONNX.
template <typename Real>
__device__ __forceinline__ Real activate(Real value, Activation activation, float alpha)
{
    Real const zero = 0;
    switch (activation)
    {
    case Activation::kRELU:
        return value < zero ? zero : value;
    case Activation::kRELU6:
        return value < zero ? zero : (value > Real(6) ? Real(6) : value);
    case Activation::kSILU:
        return value / (Real(1) + exponential(-value));
    case Activation::kHARD_SWISH:
    {
        Real const gate = value / Real(6) + Real(0.5);
        return value * (gate < zero ? zero : (gate > Real(1) ? Real(1) : gate));
    }
    case Activation::kLEAKY_RELU:
        return value < zero ? Real(alpha) * value : value;
    case Activation::kNONE:
        break;
    }
    return value;
}

// The same for several values. The activation is selected once for all of them, outside the loop.
template <int32_t kCount>
__device__ __forceinline__ void activateAll(float (&values)[kCount], Activation activation, float alpha)
{
#define TRTKP_ACTIVATE_ALL(name)                                                                                       \
    case name:                                                                                                         \
        TRTKP_UNROLL                                                                                                   \
        for (int32_t i = 0; i < kCount; ++i)                                                                           \
        {                                                                                                              \
            values[i] = activate(values[i], name, alpha);                                                              \
        }                                                                                                              \
        break
    switch (activation)
    {
        TRTKP_ACTIVATE_ALL(Activation::kRELU);
        TRTKP_ACTIVATE_ALL(Activation::kRELU6);
        TRTKP_ACTIVATE_ALL(Activation::kSILU);
        TRTKP_ACTIVATE_ALL(Activation::kHARD_SWISH);
        TRTKP_ACTIVATE_ALL(Activation::kLEAKY_RELU);
    case Activation::kNONE:
        break;
    }
#undef TRTKP_ACTIVATE_ALL
}

} // namespace trtkp

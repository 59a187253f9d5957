// What differs between the four kinds of convolution: their inputs, their checks, and how they are launched.
#pragma once

#include "call.h"
#include "operators.h"
#include "settings.h"
#include "tensorrt.h"

#include <vector>

namespace trtkp::glue
{

struct Family
{
    char const* name;
    bool hasTwoFour;

    std::vector<Input> (*inputs)(bool hasResidual, bool twoFour);

    // The call for inputs whose sizes are all known. Throws Error if a tensor has a shape that the layer does not take.
    Call (*call)(Operator const& op, Settings const& settings, nvinfer1::PluginTensorDesc const* inputs,
        nvinfer1::PluginTensorDesc const& output);
};

extern Family const kKernelIndexConv;
extern Family const kStripeConv;
extern Family const kPatternConv;
extern Family const kDynamicPatternConv;

} // namespace trtkp::glue

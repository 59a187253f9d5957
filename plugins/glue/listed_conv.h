// What the three convolutions with static lists share. They differ in what a list holds.
#pragma once

#include "family.h"

namespace trtkp::glue
{

// The inputs in the order of trtkp/graph/ops.py; `index` is the name of the index input.
std::vector<Input> listedInputs(char const* index, bool hasResidual, bool twoFour);

// The call for given tensors. `columns` computes K, the columns of a packed row, from the length of a list.
Call listedCall(Operator const& op, Settings const& settings, nvinfer1::PluginTensorDesc const* inputs,
    nvinfer1::PluginTensorDesc const& output, trtkpListKind kind,
    int64_t (*columns)(Settings const& settings, int64_t listLength));

} // namespace trtkp::glue

// The three convolutions with static lists, which differ in what a list holds.
#pragma once

#include "family.h"

namespace trtkp::glue
{

// Inputs in the order of trtkp/graph/ops.py, the index input under its name.
std::vector<Input> listedInputs(char const* index, bool hasResidual, bool twoFour);

// `columns` are those of a packed row for the list's length: K.
std::shared_ptr<Call const> listedCall(Operator const& op, Settings const& settings,
    std::vector<nvinfer1::PluginTensorDesc> const& inputs, nvinfer1::PluginTensorDesc const& output, trtkpListKind kind,
    int64_t (*columns)(Settings const& settings, int64_t listLength));

} // namespace trtkp::glue

// The attributes of a node, from which a plugin is created and which an engine stores.
#pragma once

#include "fields.h"
#include "operators.h"

#include <array>
#include <string>
#include <vector>

namespace trtkp::glue
{

// The attributes, as in trtkp/graph/ops.py.
struct Settings
{
    std::array<int32_t, 2> strides{1, 1};
    std::array<int32_t, 4> pads{0, 0, 0, 0}; // top, left, bottom, right
    std::array<int32_t, 2> dilations{1, 1};
    int32_t group{1};
    std::array<int32_t, 4> weightShape{}; // F, C, R, S
    float alpha{0.0F};
    int32_t listBlock{1}; // as in trtkpConvDesc
    std::string pins;     // field `tactic`, as in tactics.h; empty if nothing is pinned
};

// The fields of an operator: those of its node and, in an engine, the version of the format.
std::vector<FieldSpec> fieldSpecs(Operator const& op, nvinfer1::TensorRTPhase phase);

// Reads and checks settings. Throws Error with the name and the value of the field at fault.
Settings readSettings(Operator const& op, nvinfer1::PluginFieldCollection const* fields, nvinfer1::TensorRTPhase phase);

// All fields of the runtime phase. They point into `settings`.
std::vector<nvinfer1::PluginField> writeSettings(Operator const& op, Settings const& settings);

// One line with every value.
std::string describe(Settings const& settings);

// The part of a description for the C interface that settings determine. Shapes and lists are still missing.
trtkpConvDesc convDesc(Operator const& op, Settings const& settings);

} // namespace trtkp::glue

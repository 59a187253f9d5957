// A node's attributes: what a plugin is created from and what an engine keeps of it.
#pragma once

#include "fields.h"
#include "operators.h"

#include <array>
#include <string>
#include <vector>

namespace trtkp::glue
{

// Attributes of trtkp/graph/ops.py.
struct Settings
{
    std::array<int32_t, 2> strides{1, 1};
    std::array<int32_t, 4> pads{0, 0, 0, 0}; // top, left, bottom, right
    std::array<int32_t, 2> dilations{1, 1};
    int32_t group{1};
    std::array<int32_t, 4> weightShape{}; // F, C, R, S
    float alpha{0.0F};
    int32_t listBlock{1}; // as of trtkpConvDesc
};

// The fields of an operator: those of its node, and for an engine the version of the format, too.
std::vector<FieldSpec> fieldSpecs(Operator const& op, nvinfer1::TensorRTPhase phase);

// Throws Error with the field and its value.
Settings readSettings(Operator const& op, nvinfer1::PluginFieldCollection const* fields, nvinfer1::TensorRTPhase phase);

// Every field of the runtime phase, pointing into `settings`.
std::vector<nvinfer1::PluginField> writeSettings(Operator const& op, Settings const& settings);

// One line with every value.
std::string describe(Settings const& settings);

// What a description for the C interface takes from settings; shapes and lists are left open.
trtkpConvDesc convDesc(Operator const& op, Settings const& settings);

} // namespace trtkp::glue

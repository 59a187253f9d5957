// From tensors as TensorRT describes them to the sizes and pitches of the C interface.
#pragma once

#include "settings.h"
#include "tensorrt.h"

#include <initializer_list>

namespace trtkp::glue
{

// Throws Error unless the tensor has these sizes.
void requireDims(char const* name, nvinfer1::PluginTensorDesc const& tensor, std::initializer_list<int64_t> sizes);

// The tensor's size along an axis, after a check of its rank and that it fits an int32.
int32_t sizeOf(char const* name, nvinfer1::PluginTensorDesc const& tensor, int32_t rank, int32_t axis);

// Distance of two pixels in channels: a multiple of 8 in kHWC8, the channels themselves in kHWC.
int32_t pitchOf(nvinfer1::PluginTensorDesc const& tensor);

// Adds batch, size, type and pitches of X and Y.
void describeActivations(trtkpConvDesc& desc, nvinfer1::PluginTensorDesc const& x, nvinfer1::PluginTensorDesc const& y);

// Checks Y against the layer; a residual has the same shape. After describeActivations and all that describes lists.
void requireOutput(char const* name, trtkpConvDesc const& desc, nvinfer1::PluginTensorDesc const& tensor);

// Throws Error with the C interface's message.
void requireOk(trtkpStatus status);

} // namespace trtkp::glue

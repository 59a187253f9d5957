// From TensorRT's descriptions of tensors to the sizes and pitches of the C interface.
#pragma once

#include "settings.h"
#include "tensorrt.h"

#include <initializer_list>

namespace trtkp::glue
{

// Throws Error unless the tensor has these sizes.
void requireDims(char const* name, nvinfer1::PluginTensorDesc const& tensor, std::initializer_list<int64_t> sizes);

// The size of a tensor along an axis. Throws Error unless the tensor has this rank and the size fits int32.
int32_t sizeOf(char const* name, nvinfer1::PluginTensorDesc const& tensor, int32_t rank, int32_t axis);

// The distance between two pixels in channels: the number of channels in kHWC, rounded up to a multiple of 8 in kHWC8.
int32_t pitchOf(nvinfer1::PluginTensorDesc const& tensor);

// Adds the batch, size, type and pitches of X and Y to a description.
void describeActivations(trtkpConvDesc& desc, nvinfer1::PluginTensorDesc const& x, nvinfer1::PluginTensorDesc const& y);

// Checks the shape of Y, or of a residual, which has the same shape. The description must be complete.
void requireOutput(char const* name, trtkpConvDesc const& desc, nvinfer1::PluginTensorDesc const& tensor);

// Throws Error with the message of the C interface unless the status is TRTKP_OK.
void requireOk(trtkpStatus status);

} // namespace trtkp::glue

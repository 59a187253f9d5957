#include "shapes.h"

#include "error.h"

#include <algorithm>
#include <limits>

namespace trtkp::glue
{
namespace
{

using nvinfer1::DataType;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorFormat;

int32_t constexpr kVector = 8; // channels of kHWC8

// Sizes in a message. They are formatted only if the message is needed, which is what makes checks cheap.
struct Sizes
{
    int64_t const* first;
    int64_t const* last;
};

std::ostream& operator<<(std::ostream& stream, Sizes const& sizes)
{
    stream << '[';
    for (int64_t const* at = sizes.first; at != sizes.last; ++at)
    {
        stream << (at == sizes.first ? "" : ", ") << *at;
    }
    return stream << ']';
}

Sizes shown(nvinfer1::Dims const& dims)
{
    return {dims.d, dims.d + std::clamp(dims.nbDims, 0, nvinfer1::Dims::MAX_DIMS)};
}

int32_t dataTypeOf(PluginTensorDesc const& tensor)
{
    switch (tensor.type)
    {
    case DataType::kFLOAT:
        return TRTKP_FLOAT32;
    case DataType::kHALF:
        return TRTKP_FLOAT16;
    case DataType::kBF16:
        return TRTKP_BFLOAT16;
    default:
        fail("X is of data type ", static_cast<int32_t>(tensor.type), ", not float32, float16 or bfloat16");
    }
}

} // namespace

void requireDims(char const* name, PluginTensorDesc const& tensor, std::initializer_list<int64_t> sizes)
{
    bool const isEqual = tensor.dims.nbDims == static_cast<int32_t>(sizes.size())
        && std::equal(sizes.begin(), sizes.end(), tensor.dims.d);
    require(isEqual, name, " has shape ", shown(tensor.dims), ", not ", Sizes{sizes.begin(), sizes.end()});
}

int32_t sizeOf(char const* name, PluginTensorDesc const& tensor, int32_t rank, int32_t axis)
{
    require(tensor.dims.nbDims == rank, name, " has shape ", shown(tensor.dims), ", not ", rank, " dimensions");
    int64_t const size = tensor.dims.d[axis];
    require(size >= 0 && size <= std::numeric_limits<int32_t>::max(), name, " has shape ", shown(tensor.dims));
    return static_cast<int32_t>(size);
}

int32_t pitchOf(PluginTensorDesc const& tensor)
{
    int32_t const channels = sizeOf("an activation", tensor, 4, 1);
    require(channels <= std::numeric_limits<int32_t>::max() - kVector, "an activation has ", channels, " channels");
    switch (tensor.format)
    {
    case TensorFormat::kHWC:
        return channels;
    case TensorFormat::kHWC8:
        return (channels + kVector - 1) / kVector * kVector;
    default:
        fail("an activation is of format ", static_cast<int32_t>(tensor.format), ", not kHWC or kHWC8");
    }
}

void describeActivations(trtkpConvDesc& desc, PluginTensorDesc const& x, PluginTensorDesc const& y)
{
    desc.dataType = dataTypeOf(x);
    desc.batch = sizeOf("X", x, 4, 0);
    desc.height = sizeOf("X", x, 4, 2);
    desc.width = sizeOf("X", x, 4, 3);
    requireDims("X", x, {desc.batch, static_cast<int64_t>(desc.channels) * desc.groups, desc.height, desc.width});
    desc.xPitch = pitchOf(x);
    desc.yPitch = pitchOf(y);
    desc.residualPitch = desc.hasResidual == 1 ? desc.yPitch : 0;
}

void requireOutput(char const* name, trtkpConvDesc const& desc, PluginTensorDesc const& tensor)
{
    int32_t height = 0;
    int32_t width = 0;
    requireOk(trtkpConvOutputSize(&desc, &height, &width));
    requireDims(name, tensor, {desc.batch, desc.filters, height, width});
}

void requireOk(trtkpStatus status)
{
    require(status == TRTKP_OK, trtkpLastError());
}

} // namespace trtkp::glue

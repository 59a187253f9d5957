// KernelIndexConv: every filter group has a list of channels, and keeps all taps of each.
#include "listed_conv.h"

namespace trtkp::glue
{

Family const kKernelIndexConv{"KernelIndexConv", true,
    [](bool hasResidual, bool twoFour) { return listedInputs("channels", hasResidual, twoFour); },
    [](Operator const& op, Settings const& settings, nvinfer1::PluginTensorDesc const* inputs,
        nvinfer1::PluginTensorDesc const& output)
    {
        return listedCall(op, settings, inputs, output, TRTKP_CHANNELS,
            [](Settings const& s, int64_t listLength) { return listLength * s.weightShape[2] * s.weightShape[3]; });
    }};

} // namespace trtkp::glue

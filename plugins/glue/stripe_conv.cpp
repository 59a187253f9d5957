// StripeConv: every filter group has a list of taps, and keeps all channels at each.
#include "listed_conv.h"

namespace trtkp::glue
{

Family const kStripeConv{"StripeConv", true,
    [](bool hasResidual, bool twoFour) { return listedInputs("taps", hasResidual, twoFour); },
    [](Operator const& op, Settings const& settings, nvinfer1::PluginTensorDesc const* inputs,
        nvinfer1::PluginTensorDesc const& output)
    {
        return listedCall(op, settings, inputs, output, TRTKP_TAPS,
            [](Settings const& s, int64_t listLength) { return listLength * s.weightShape[1]; });
    }};

} // namespace trtkp::glue

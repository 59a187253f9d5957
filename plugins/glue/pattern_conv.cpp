// PatternConv: every filter group has a list of (tap, channel) entries.
#include "listed_conv.h"

namespace trtkp::glue
{

Family const kPatternConv{"PatternConv", true,
    [](bool hasResidual, bool twoFour) { return listedInputs("entries", hasResidual, twoFour); },
    [](Operator const& op, Settings const& settings, nvinfer1::PluginTensorDesc const* inputs,
        nvinfer1::PluginTensorDesc const& output)
    {
        return listedCall(op, settings, inputs, output, TRTKP_ENTRIES,
            [](Settings const&, int64_t listLength) { return listLength; });
    }};

} // namespace trtkp::glue

// DynamicPatternConv: the kernels of a sample are summed with its attention as weights, over one list of taps.
#include "error.h"
#include "family.h"
#include "shapes.h"

namespace trtkp::glue
{
namespace
{

// Positions of the inputs. Operators with "Add" in their name have a residual at the end.
enum Place
{
    kX,
    kWEIGHT,
    kTAPS,
    kATTENTION,
    kBIAS,
    kRESIDUAL,
};

std::vector<Input> dynamicInputs(bool hasResidual, bool)
{
    std::vector<Input> inputs{{"X", InputRole::kACTIVATION}, {"weight", InputRole::kPLAIN}, {"taps", InputRole::kINDEX},
        {"attention", InputRole::kPLAIN}, {"bias", InputRole::kPLAIN}};
    if (hasResidual)
    {
        inputs.push_back({"residual", InputRole::kACTIVATION});
    }
    return inputs;
}

Call dynamicCall(Operator const& op, Settings const& settings, nvinfer1::PluginTensorDesc const* inputs,
    nvinfer1::PluginTensorDesc const& output)
{
    trtkpDynamicDesc desc{};
    desc.structSize = sizeof(desc);
    desc.interfaceVersion = TRTKP_INTERFACE_VERSION;
    desc.patterns = sizeOf("weight", inputs[kWEIGHT], 3, 0);
    trtkpConvDesc& conv = desc.conv = convDesc(op, settings);
    conv.listKind = TRTKP_TAPS;
    conv.listGroups = 1;
    conv.listLength = sizeOf("taps", inputs[kTAPS], 2, 1);
    conv.rows = conv.filters;
    describeActivations(conv, inputs[kX], output);
    requireOutput("Y", conv, output);
    int64_t const columns = static_cast<int64_t>(conv.listLength) * conv.channels;
    requireDims("weight", inputs[kWEIGHT], {desc.patterns, conv.filters, columns});
    requireDims("taps", inputs[kTAPS], {1, conv.listLength});
    requireDims("attention", inputs[kATTENTION], {conv.batch, desc.patterns, conv.filters});
    requireDims("bias", inputs[kBIAS], {conv.filters});
    if (op.hasResidual)
    {
        requireOutput("residual", conv, inputs[kRESIDUAL]);
    }
    return DynamicCall{desc};
}

} // namespace

void DynamicCall::launch(
    int32_t tactic, void const* const* inputs, void* output, void* workspace, size_t bytes, cudaStream_t stream) const
{
    trtkpDynamicTensors tensors{};
    tensors.structSize = sizeof(tensors);
    tensors.x = inputs[kX];
    tensors.weight = inputs[kWEIGHT];
    tensors.attention = inputs[kATTENTION];
    tensors.index = static_cast<int32_t const*>(inputs[kTAPS]);
    tensors.bias = inputs[kBIAS];
    tensors.residual = mDesc.conv.hasResidual == 1 ? inputs[kRESIDUAL] : nullptr;
    tensors.y = output;
    tensors.workspace = workspace;
    tensors.workspaceBytes = bytes;
    requireOk(trtkpDynamicLaunch(&mDesc, tactic, &tensors, stream));
}

Family const kDynamicPatternConv{"DynamicPatternConv", false, dynamicInputs, dynamicCall};

} // namespace trtkp::glue

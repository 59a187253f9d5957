#include "listed_conv.h"

#include "error.h"
#include "shapes.h"

namespace trtkp::glue
{
namespace
{

// Positions of the inputs. A residual and then metadata follow, if the operator has them.
enum Place
{
    kX,
    kWEIGHT,
    kINDEX_LIST,
    kROW_GROUP,
    kFILTERS,
    kBIAS,
    kFIRST_OPTIONAL,
};

// 2:4 weights as trtkp/graph/two_four.py stores them: columns of a step, how many of them are stored, and rows and
// words of a block of metadata.
int64_t constexpr kStepColumns = 64;
int64_t constexpr kStepStored = 32;
int64_t constexpr kBlockRows = 16;
int64_t constexpr kStepWords = 32;

} // namespace

void ListedCall::launch(
    int32_t tactic, void const* const* inputs, void* output, void* workspace, size_t bytes, cudaStream_t stream) const
{
    trtkpConvTensors tensors{};
    tensors.structSize = sizeof(tensors);
    tensors.x = inputs[kX];
    tensors.weight = inputs[kWEIGHT];
    tensors.index = static_cast<int32_t const*>(inputs[kINDEX_LIST]);
    tensors.rowGroup = static_cast<int32_t const*>(inputs[kROW_GROUP]);
    tensors.rowFilter = static_cast<int32_t const*>(inputs[kFILTERS]);
    tensors.bias = inputs[kBIAS];
    int32_t next = kFIRST_OPTIONAL;
    tensors.residual = mDesc.hasResidual == 1 ? inputs[next++] : nullptr;
    tensors.metadata = mDesc.twoFour == 1 ? static_cast<int32_t const*>(inputs[next]) : nullptr;
    tensors.y = output;
    tensors.workspace = workspace;
    tensors.workspaceBytes = bytes;
    requireOk(trtkpConvLaunch(&mDesc, tactic, &tensors, stream));
}

std::vector<Input> listedInputs(char const* index, bool hasResidual, bool twoFour)
{
    std::vector<Input> inputs{{"X", InputRole::kACTIVATION}, {"weight", InputRole::kPLAIN}, {index, InputRole::kINDEX},
        {"row_group", InputRole::kINDEX}, {"filters", InputRole::kINDEX}, {"bias", InputRole::kPLAIN}};
    if (hasResidual)
    {
        inputs.push_back({"residual", InputRole::kACTIVATION});
    }
    if (twoFour)
    {
        inputs.push_back({"metadata", InputRole::kINDEX});
    }
    return inputs;
}

Call listedCall(Operator const& op, Settings const& settings, nvinfer1::PluginTensorDesc const* inputs,
    nvinfer1::PluginTensorDesc const& output, trtkpListKind kind,
    int64_t (*columns)(Settings const& settings, int64_t listLength))
{
    auto const name = [&](int32_t place) { return op.inputs[place].name; };
    trtkpConvDesc desc = convDesc(op, settings);
    desc.listKind = kind;
    describeActivations(desc, inputs[kX], output);
    desc.rows = sizeOf(name(kWEIGHT), inputs[kWEIGHT], 2, 0);
    desc.listGroups = sizeOf(name(kINDEX_LIST), inputs[kINDEX_LIST], 2, 0);
    desc.listLength = sizeOf(name(kINDEX_LIST), inputs[kINDEX_LIST], 2, 1);
    requireOutput("Y", desc, output);

    int64_t const rowLength = columns(settings, desc.listLength);
    int64_t const steps = (rowLength + kStepColumns - 1) / kStepColumns;
    requireDims(name(kWEIGHT), inputs[kWEIGHT], {desc.rows, op.twoFour ? kStepStored * steps : rowLength});
    requireDims(name(kROW_GROUP), inputs[kROW_GROUP], {desc.rows});
    requireDims(name(kFILTERS), inputs[kFILTERS], {desc.rows});
    requireDims(name(kBIAS), inputs[kBIAS], {desc.filters});
    int32_t next = kFIRST_OPTIONAL;
    if (op.hasResidual)
    {
        requireOutput(name(next), desc, inputs[next]);
        ++next;
    }
    if (op.twoFour)
    {
        requireDims(name(next), inputs[next], {(desc.rows + kBlockRows - 1) / kBlockRows, steps, kStepWords});
    }
    return ListedCall{desc};
}

} // namespace trtkp::glue

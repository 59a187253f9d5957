#include "../kernels/launch.h"
#include "error.h"
#include "layer.h"
#include "pointers.h"
#include "tactics.h"
#include "trtkp.h"

#include <cstdint>
#include <iterator>

namespace trtkp::capi
{
namespace
{

int64_t constexpr kMaxSamples = 65535; // a slice of the grid for each
int64_t constexpr kMaxPatterns = 1024;

struct DynamicTactic
{
    char const* name;
    cudaError_t (*launch)(DynamicProblem const&, DataType, cudaStream_t);
    int32_t convTactic; // takes the same layers
};

int32_t constexpr kFirstDynamic = TRTKP_TACTIC_DYNAMIC_REFERENCE;

// In the order of their numbers.
DynamicTactic constexpr kTactics[] = {
    {"dynamic_reference", launchDynamicReference, TRTKP_TACTIC_REFERENCE},
    {"dynamic_128x64", launchDynamic128x64, TRTKP_TACTIC_MMA_128X64},
    {"dynamic_64x64", launchDynamic64x64, TRTKP_TACTIC_MMA_64X64},
};

DynamicTactic const* tacticOf(int32_t number)
{
    int32_t const at = number - kFirstDynamic;
    return at >= 0 && at < static_cast<int32_t>(std::size(kTactics)) ? &kTactics[at] : nullptr;
}

struct DynamicLayer
{
    Layer layer; // of the whole batch
    int32_t patterns;
};

DynamicLayer checkedDynamic(trtkpDynamicDesc const* desc)
{
    require(desc != nullptr, "desc is null");
    require(desc->structSize == sizeof(trtkpDynamicDesc), "desc.structSize is ", desc->structSize, ", not ",
        sizeof(trtkpDynamicDesc));
    require(desc->interfaceVersion == TRTKP_INTERFACE_VERSION, "desc.interfaceVersion is ", desc->interfaceVersion,
        ", not ", TRTKP_INTERFACE_VERSION);
    require(desc->reserved == 0, "desc.reserved is not 0");
    require(desc->patterns >= 1 && desc->patterns <= kMaxPatterns, "patterns is ", desc->patterns, ", not in [1, ",
        kMaxPatterns, "]");
    trtkpConvDesc const& conv = desc->conv;
    DynamicLayer const dynamic{checkedLayer(&conv), desc->patterns};
    require(conv.listKind == TRTKP_TAPS, "conv.listKind is ", conv.listKind, ", not TRTKP_TAPS");
    require(conv.listGroups == 1, "conv.listGroups is ", conv.listGroups, ", not 1");
    require(conv.groups == 1, "conv.groups is ", conv.groups, ", not 1");
    require(conv.rows == conv.filters, "conv.rows is ", conv.rows, ", not filters (", conv.filters, ")");
    require(conv.twoFour == 0, "conv.twoFour is not 0");
    require(conv.batch <= kMaxSamples, "conv.batch is ", conv.batch, ", more than ", kMaxSamples, "; split the batch");
    return dynamic;
}

DynamicTactic const& checkedTactic(int32_t number, DynamicLayer const& dynamic)
{
    DynamicTactic const* const tactic = tacticOf(number);
    require(tactic != nullptr, "tactic is ", number, ", which is none of a dynamic pattern");
    char const* const reason = whyNot(tactic->convTactic, dynamic.layer);
    if (reason != nullptr)
    {
        fail(TRTKP_UNSUPPORTED, "tactic ", tactic->name, " ", reason);
    }
    return *tactic;
}

size_t roundedUp(size_t bytes)
{
    return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

// The workspace holds weights of every sample, then two tables of rows.
size_t weightBytes(Layer const& layer)
{
    ConvProblem const& problem = layer.problem;
    return roundedUp(static_cast<size_t>(elementSize(layer.type)) * problem.batch * problem.filters * problem.columns);
}

size_t tableBytes(Layer const& layer)
{
    return roundedUp(sizeof(int32_t) * layer.problem.filters);
}

DynamicProblem problemWith(DynamicLayer const& dynamic, trtkpDynamicTensors const* tensors)
{
    require(tensors != nullptr, "tensors is null");
    require(tensors->structSize == sizeof(trtkpDynamicTensors), "tensors.structSize is ", tensors->structSize, ", not ",
        sizeof(trtkpDynamicTensors));
    require(tensors->reserved == 0, "tensors.reserved is not 0");
    Layer const& layer = dynamic.layer;
    ConvProblem const& whole = layer.problem;
    requirePointer("x", tensors->x, kAlignment);
    requirePointer("weight", tensors->weight, kAlignment);
    requirePointer("attention", tensors->attention, kAlignment);
    requirePointer("index", tensors->index, sizeof(int32_t));
    requirePointer("y", tensors->y, kAlignment);
    requirePointer("workspace", tensors->workspace, kAlignment);
    require((tensors->bias != nullptr) == layer.hasBias, "bias is ", layer.hasBias ? "null" : "given",
        ", unlike conv.hasBias");
    require((tensors->residual != nullptr) == layer.hasResidual, "residual is ", layer.hasResidual ? "null" : "given",
        ", unlike conv.hasResidual");
    if (layer.hasBias)
    {
        requirePointer("bias", tensors->bias, kAlignment);
    }
    if (layer.hasResidual)
    {
        requirePointer("residual", tensors->residual, kAlignment);
    }
    size_t const workspace = weightBytes(layer) + 2 * tableBytes(layer);
    require(
        tensors->workspaceBytes >= workspace, "workspaceBytes is ", tensors->workspaceBytes, ", less than ", workspace);

    int64_t const size = elementSize(layer.type);
    int64_t const pixels = pixelCount(whole);
    int64_t const yBytes = size * pixels * whole.yPitch;
    int64_t const kernelBytes = size * dynamic.patterns * whole.filters * whole.columns;
    requireApart("x", tensors->x, size * whole.batch * whole.height * whole.width * whole.xPitch, tensors->y, yBytes);
    requireApart("weight", tensors->weight, kernelBytes, tensors->y, yBytes);
    requireApart(
        "attention", tensors->attention, size * whole.batch * dynamic.patterns * whole.filters, tensors->y, yBytes);
    requireApart("bias", tensors->bias, size * whole.filters, tensors->y, yBytes);
    requireApart("residual", tensors->residual, size * pixels * whole.residualPitch, tensors->y, yBytes);
    requireApart("workspace", tensors->workspace, static_cast<int64_t>(workspace), tensors->y, yBytes);

    DynamicProblem problem{};
    problem.samples = whole.batch;
    problem.patterns = dynamic.patterns;
    problem.kernels = tensors->weight;
    problem.attention = tensors->attention;
    auto* const memory = static_cast<unsigned char*>(tensors->workspace);
    problem.weight = memory;
    problem.rowGroup = reinterpret_cast<int32_t*>(memory + weightBytes(layer));
    problem.rowFilter = reinterpret_cast<int32_t*>(memory + weightBytes(layer) + tableBytes(layer));
    ConvProblem& conv = problem.conv;
    conv = whole;
    conv.batch = 1;
    conv.splits = 1;
    conv.x = tensors->x;
    conv.weight = problem.weight;
    conv.index = tensors->index;
    conv.rowGroup = problem.rowGroup;
    conv.rowFilter = problem.rowFilter;
    conv.bias = tensors->bias;
    conv.residual = tensors->residual;
    conv.y = tensors->y;
    return problem;
}

} // namespace

char const* dynamicTacticName(int32_t tactic)
{
    DynamicTactic const* const known = tacticOf(tactic);
    return known == nullptr ? nullptr : known->name;
}

} // namespace trtkp::capi

using namespace trtkp::capi;

trtkpStatus trtkpDynamicTactics(trtkpDynamicDesc const* desc, int32_t* tactics, int32_t capacity, int32_t* count)
{
    return guarded(
        [&]
        {
            require(tactics != nullptr && count != nullptr, "tactics or count is null");
            DynamicLayer const dynamic = checkedDynamic(desc);
            int32_t found = 0;
            for (int32_t at = 0; at < static_cast<int32_t>(std::size(kTactics)) && found < capacity; ++at)
            {
                if (whyNot(kTactics[at].convTactic, dynamic.layer) == nullptr)
                {
                    tactics[found++] = kFirstDynamic + at;
                }
            }
            *count = found;
        });
}

trtkpStatus trtkpDynamicWorkspaceBytes(trtkpDynamicDesc const* desc, int32_t tactic, size_t* bytes)
{
    return guarded(
        [&]
        {
            require(bytes != nullptr, "bytes is null");
            DynamicLayer const dynamic = checkedDynamic(desc);
            checkedTactic(tactic, dynamic);
            *bytes = weightBytes(dynamic.layer) + 2 * tableBytes(dynamic.layer);
        });
}

trtkpStatus trtkpDynamicLaunch(
    trtkpDynamicDesc const* desc, int32_t tactic, trtkpDynamicTensors const* tensors, void* stream)
{
    return guarded(
        [&]
        {
            DynamicLayer const dynamic = checkedDynamic(desc);
            DynamicTactic const& chosen = checkedTactic(tactic, dynamic);
            trtkp::DynamicProblem const problem = problemWith(dynamic, tensors);
            auto* const on = static_cast<cudaStream_t>(stream);
            cudaError_t status = trtkp::launchAggregate(problem, dynamic.layer.type, on);
            if (status == cudaSuccess)
            {
                status = chosen.launch(problem, dynamic.layer.type, on);
            }
            if (status != cudaSuccess)
            {
                fail(TRTKP_CUDA_ERROR, "launching ", chosen.name, ": ", cudaGetErrorString(status));
            }
        });
}

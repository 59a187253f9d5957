#include "../kernels/launch/launch.h"
#include "checks.h"
#include "error.h"
#include "layer.h"
#include "tactics.h"
#include "trtkp.h"

#include <cstdint>
#include <iterator>

namespace trtkp::capi
{
namespace
{

int64_t constexpr kMaxSamples = 65535; // each is a slice of the grid, whose z dimension ends there
int64_t constexpr kMaxPatterns = 1024;

struct DynamicTactic
{
    char const* name;
    cudaError_t (*launch)(DynamicProblem const&, DataType, cudaStream_t);
    int32_t convTactic; // the static tactic that takes the same layers
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
    Layer layer; // that of the whole batch
    int32_t patterns;
};

DynamicLayer checkedDynamic(trtkpDynamicDesc const* desc)
{
    requireDesc(desc);
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

// The workspace holds the weights of every sample, then two tables of rows.
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
    Layer const& layer = dynamic.layer;
    ConvProblem const& whole = layer.problem;
    Output const output
        = requireTensors(layer, tensors, static_cast<int64_t>(dynamic.patterns) * whole.filters * whole.columns);
    requirePointer("attention", tensors->attention, kAlignment);
    output.requireApart("attention", tensors->attention,
        static_cast<int64_t>(elementSize(layer.type)) * whole.batch * dynamic.patterns * whole.filters);
    requireWorkspace(*tensors, weightBytes(layer) + 2 * tableBytes(layer), output);

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
            requireLaunched(chosen.name, status);
        });
}

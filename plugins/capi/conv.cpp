#include "../kernels/launch.h"
#include "error.h"
#include "layer.h"
#include "pointers.h"
#include "tactics.h"
#include "trtkp.h"

#include <cstdint>
#include <cstring>
#include <iterator>

namespace trtkp::capi
{
namespace
{

thread_local char tLastError[512] = "";

enum class Tier
{
    kREFERENCE,
    kDENSE,
    kSPARSE,
    kSPARSE_SINGLES,
};

struct Tactic
{
    char const* name;
    cudaError_t (*launch)(ConvProblem const&, DataType, cudaStream_t);
    int32_t tileRows; // 0 for T0
    int32_t splits;
    Tier tier;
};

// The tables of tactics, in the order of their numbers.
int32_t constexpr kFirstSparse = TRTKP_TACTIC_SPARSE_128X128;

Tactic constexpr kTactics[] = {
    {"reference", launchReference, 0, 1, Tier::kREFERENCE},
    {"mma_128x128", launchMma128x128, 128, 1, Tier::kDENSE},
    {"mma_128x64", launchMma128x64, 64, 1, Tier::kDENSE},
    {"mma_64x64", launchMma64x64, 64, 1, Tier::kDENSE},
    {"mma_64x32", launchMma64x32, 32, 1, Tier::kDENSE},
    {"mma_64x64_split4", launchMma64x64, 64, 4, Tier::kDENSE},
    {"mma_64x64_split16", launchMma64x64, 64, 16, Tier::kDENSE},
    {"mma_64x32_split4", launchMma64x32, 32, 4, Tier::kDENSE},
};

Tactic constexpr kSparseTactics[] = {
    {"sparse_128x128", launchSparse128x128, 128, 1, Tier::kSPARSE},
    {"sparse_128x64", launchSparse128x64, 64, 1, Tier::kSPARSE},
    {"sparse_64x64", launchSparse64x64, 64, 1, Tier::kSPARSE},
    {"sparse_64x64_split4", launchSparse64x64, 64, 4, Tier::kSPARSE},
    {"sparse_singles_64x64", launchSparseSingles64x64, 64, 1, Tier::kSPARSE_SINGLES},
    {"sparse_singles_64x128", launchSparseSingles64x128, 128, 1, Tier::kSPARSE_SINGLES},
};

// Null for a number that is no tactic.
Tactic const* tacticOf(int32_t number)
{
    if (number >= 0 && number < static_cast<int32_t>(std::size(kTactics)))
    {
        return &kTactics[number];
    }
    int32_t const sparse = number - kFirstSparse;
    return sparse >= 0 && sparse < static_cast<int32_t>(std::size(kSparseTactics)) ? &kSparseTactics[sparse] : nullptr;
}

int32_t constexpr kChunk = 8; // 16-bit elements of a 16-byte copy
int32_t constexpr kMaxGridY = 65535;
int32_t constexpr kSmallestTile = 32;
// Columns of a step.
int32_t constexpr kStep = 32;
int32_t constexpr kSparseStep = 64;

// Partial sums have a column for each row of every tile.
int32_t partialPitch(Tactic const& tactic, ConvProblem const& problem)
{
    return (problem.rows + tactic.tileRows - 1) / tactic.tileRows * tactic.tileRows;
}

size_t workspaceBytes(Tactic const& tactic, ConvProblem const& problem)
{
    return tactic.splits == 1 ? 0 : sizeof(float) * tactic.splits * pixelCount(problem) * partialPitch(tactic, problem);
}

// Why a tactic does not take a layer; null if it does.
char const* whyNot(Tactic const& tactic, Layer const& layer)
{
    ConvProblem const& problem = layer.problem;
    if (tactic.tier == Tier::kREFERENCE)
    {
        return problem.rows < kMaxGridY ? nullptr : "more than 65534 rows";
    }
    if (layer.type == DataType::kFLOAT32)
    {
        return "needs float16 or bfloat16";
    }
    bool const isSparse = tactic.tier != Tier::kDENSE;
    if (isSparse != layer.isTwoFour)
    {
        return isSparse ? "needs 2:4 weights (twoFour 1)" : "takes no 2:4 weights (twoFour 1)";
    }
    int64_t const blocks = (pixelCount(problem) / kSmallestTile + 1) * (problem.rows / kSmallestTile + 1);
    if (blocks > INT32_MAX)
    {
        return "too many thread blocks";
    }
    if (tactic.tier == Tier::kSPARSE_SINGLES)
    {
        return nullptr;
    }
    bool const inBlocks
        = problem.listKind == ListKind::kTAPS ? problem.channels % kChunk == 0 : layer.listBlock == kChunk;
    if (!inBlocks || problem.columns % kChunk != 0
        || problem.listLength % (problem.listKind == ListKind::kTAPS ? 1 : kChunk) != 0)
    {
        return "needs lists in blocks of 8 consecutive channels (listBlock 8)";
    }
    if (problem.groups > 1 && problem.channels % kChunk != 0)
    {
        return "needs channels of a group to be a multiple of 8";
    }
    if (problem.xPitch % kChunk != 0 || problem.yPitch % kChunk != 0
        || (layer.hasResidual && problem.residualPitch % kChunk != 0))
    {
        return "needs pitches that are multiples of 8";
    }
    bool const isLong = problem.columns / (isSparse ? kSparseStep : kStep) >= tactic.splits;
    return tactic.splits == 1 || isLong ? nullptr : "needs longer lists";
}

Tactic const& checkedTactic(int32_t tactic, Layer const& layer)
{
    Tactic const* const known = tacticOf(tactic);
    require(known != nullptr, "tactic is ", tactic, ", which is none");
    char const* const reason = whyNot(*known, layer);
    if (reason != nullptr)
    {
        fail(TRTKP_UNSUPPORTED, "tactic ", known->name, " ", reason);
    }
    return *known;
}

void setWorkspace(Layer& layer, Tactic const& tactic, trtkpConvTensors const& tensors)
{
    ConvProblem& problem = layer.problem;
    problem.splits = tactic.splits;
    size_t const bytes = workspaceBytes(tactic, problem);
    if (bytes > 0)
    {
        requirePointer("workspace", tensors.workspace, kAlignment);
        require(tensors.workspaceBytes >= bytes, "workspaceBytes is ", tensors.workspaceBytes, ", less than ", bytes);
        int64_t const yBytes = pixelCount(problem) * problem.yPitch * elementSize(layer.type);
        requireApart("workspace", tensors.workspace, static_cast<int64_t>(bytes), tensors.y, yBytes);
        problem.partialPitch = partialPitch(tactic, problem);
        problem.partial = static_cast<float*>(tensors.workspace);
    }
}

void setPointers(Layer& layer, trtkpConvTensors const* tensors)
{
    require(tensors != nullptr, "tensors is null");
    require(tensors->structSize == sizeof(trtkpConvTensors), "tensors.structSize is ", tensors->structSize, ", not ",
        sizeof(trtkpConvTensors));
    require(tensors->reserved == 0, "tensors.reserved is not 0");
    requirePointer("x", tensors->x, kAlignment);
    requirePointer("weight", tensors->weight, kAlignment);
    requirePointer("y", tensors->y, kAlignment);
    requirePointer("index", tensors->index, sizeof(int32_t));
    requirePointer("rowGroup", tensors->rowGroup, sizeof(int32_t));
    requirePointer("rowFilter", tensors->rowFilter, sizeof(int32_t));
    require((tensors->bias != nullptr) == layer.hasBias, "bias is ", layer.hasBias ? "null" : "given",
        ", unlike desc.hasBias");
    require((tensors->residual != nullptr) == layer.hasResidual, "residual is ", layer.hasResidual ? "null" : "given",
        ", unlike desc.hasResidual");
    if (layer.hasBias)
    {
        requirePointer("bias", tensors->bias, kAlignment);
    }
    if (layer.hasResidual)
    {
        requirePointer("residual", tensors->residual, kAlignment);
    }
    require((tensors->metadata != nullptr) == layer.isTwoFour, "metadata is ", layer.isTwoFour ? "null" : "given",
        ", unlike desc.twoFour");
    if (layer.isTwoFour)
    {
        requirePointer("metadata", tensors->metadata, kAlignment);
    }

    ConvProblem& problem = layer.problem;
    int64_t const size = elementSize(layer.type);
    int64_t const pixels = pixelCount(problem);
    int64_t const yBytes = pixels * problem.yPitch * size;
    int64_t const xBytes = size * problem.batch * problem.height * problem.width * problem.xPitch;
    requireApart("x", tensors->x, xBytes, tensors->y, yBytes);
    requireApart("weight", tensors->weight, size * problem.rows * problem.storedColumns, tensors->y, yBytes);
    requireApart("bias", tensors->bias, size * problem.filters, tensors->y, yBytes);
    requireApart("residual", tensors->residual, size * pixels * problem.residualPitch, tensors->y, yBytes);
    problem.x = tensors->x;
    problem.weight = tensors->weight;
    problem.metadata = tensors->metadata;
    problem.index = tensors->index;
    problem.rowGroup = tensors->rowGroup;
    problem.rowFilter = tensors->rowFilter;
    problem.bias = tensors->bias;
    problem.residual = tensors->residual;
    problem.y = tensors->y;
}

} // namespace

char const* whyNot(int32_t tactic, Layer const& layer)
{
    return whyNot(*tacticOf(tactic), layer);
}

void setLastError(char const* message) noexcept
{
    std::strncpy(tLastError, message, sizeof(tLastError) - 1);
}

} // namespace trtkp::capi

using namespace trtkp::capi;

uint32_t trtkpInterfaceVersion(void)
{
    return TRTKP_INTERFACE_VERSION;
}

char const* trtkpLastError(void)
{
    return tLastError;
}

char const* trtkpTacticName(int32_t tactic)
{
    Tactic const* const known = tacticOf(tactic);
    return known == nullptr ? dynamicTacticName(tactic) : known->name;
}

trtkpStatus trtkpConvOutputSize(trtkpConvDesc const* desc, int32_t* outHeight, int32_t* outWidth)
{
    return guarded(
        [&]
        {
            require(outHeight != nullptr && outWidth != nullptr, "outHeight or outWidth is null");
            Layer const layer = checkedLayer(desc);
            *outHeight = layer.problem.outHeight;
            *outWidth = layer.problem.outWidth;
        });
}

trtkpStatus trtkpConvCheckLists(trtkpConvDesc const* desc, int32_t const* index, int32_t const* rowGroup,
    int32_t const* rowFilter, int32_t* listBlock)
{
    return guarded(
        [&]
        {
            require(desc != nullptr, "desc is null");
            require(listBlock != nullptr, "listBlock is null");
            require(desc->structSize == sizeof(trtkpConvDesc), "desc.structSize is ", desc->structSize, ", not ",
                sizeof(trtkpConvDesc));
            trtkpConvDesc copy = *desc;
            copy.listBlock = 1;
            *listBlock = checkedLists(checkedLayer(&copy), index, rowGroup, rowFilter);
        });
}

trtkpStatus trtkpConvCheckMetadata(trtkpConvDesc const* desc, int32_t const* metadata)
{
    return guarded([&] { checkMetadata(checkedLayer(desc), metadata); });
}

trtkpStatus trtkpConvTactics(trtkpConvDesc const* desc, int32_t* tactics, int32_t capacity, int32_t* count)
{
    return guarded(
        [&]
        {
            require(tactics != nullptr && count != nullptr, "tactics or count is null");
            Layer const layer = checkedLayer(desc);
            int32_t found = 0;
            for (int32_t tactic = 0; tactic < TRTKP_TACTIC_COUNT && found < capacity; ++tactic)
            {
                Tactic const* const known = tacticOf(tactic);
                if (known != nullptr && whyNot(*known, layer) == nullptr)
                {
                    tactics[found++] = tactic;
                }
            }
            *count = found;
        });
}

trtkpStatus trtkpConvWorkspaceBytes(trtkpConvDesc const* desc, int32_t tactic, size_t* bytes)
{
    return guarded(
        [&]
        {
            require(bytes != nullptr, "bytes is null");
            Layer const layer = checkedLayer(desc);
            *bytes = workspaceBytes(checkedTactic(tactic, layer), layer.problem);
        });
}

trtkpStatus trtkpConvLaunch(trtkpConvDesc const* desc, int32_t tactic, trtkpConvTensors const* tensors, void* stream)
{
    return guarded(
        [&]
        {
            Layer layer = checkedLayer(desc);
            Tactic const& chosen = checkedTactic(tactic, layer);
            setPointers(layer, tensors);
            setWorkspace(layer, chosen, *tensors);
            cudaError_t status = chosen.launch(layer.problem, layer.type, static_cast<cudaStream_t>(stream));
            if (status == cudaSuccess && chosen.splits > 1)
            {
                status = launchSplit(layer.problem, layer.type, static_cast<cudaStream_t>(stream));
            }
            if (status != cudaSuccess)
            {
                fail(TRTKP_CUDA_ERROR, "launching ", chosen.name, ": ", cudaGetErrorString(status));
            }
        });
}

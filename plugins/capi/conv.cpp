#include "../kernels/launch/launch.h"
#include "checks.h"
#include "error.h"
#include "layer.h"
#include "tactics.h"
#include "trtkp.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <iterator>

namespace trtkp::capi
{
namespace
{

thread_local char tLastError[512] = "";

enum class Values
{
    kANY,
    k16_BITS,
    kFLOAT32,
    kTF32,
};

enum class Weights
{
    kANY,
    kDENSE,
    kTWO_FOUR,
};

// What a kernel requires of lists and shapes.
enum class Lists
{
    kREFERENCE,    // any lists; the grid must have room for a row for each packed row
    kANY,          // any lists
    kBLOCKS,       // blocks of 8 channels, and pitches that are multiples of 8
    kWHOLE_BLOCKS, // whole blocks of 8, and a kernel whose rows and columns fit into one word of bits
    kSINGLES,      // any lists, with the same limit on the kernel
    kDIRECT,       // any lists, with a limit on the input under a tile
};

struct Tactic
{
    int32_t number; // trtkpTactic
    char const* name;
    cudaError_t (*launch)(ConvProblem const&, DataType, cudaStream_t);
    Values values;
    Lists lists;
    int32_t tileRows; // packed rows of a tile; 0 for kernels without tiles, which cannot be split
    int32_t splits;   // blocks that share the list of a tile
    int32_t step;     // columns of a list per step
    Weights weights = Weights::kDENSE;
};

// In the order of their numbers.
Tactic constexpr kTactics[] = {
    {0, "reference", launchReference, Values::kANY, Lists::kREFERENCE, 0, 1, 1, Weights::kANY},
    {1, "mma_128x128", launchMma128x128, Values::k16_BITS, Lists::kBLOCKS, 128, 1, 32},
    {2, "mma_128x64", launchMma128x64, Values::k16_BITS, Lists::kBLOCKS, 64, 1, 32},
    {3, "mma_64x64", launchMma64x64, Values::k16_BITS, Lists::kBLOCKS, 64, 1, 32},
    {4, "mma_64x32", launchMma64x32, Values::k16_BITS, Lists::kBLOCKS, 32, 1, 32},
    {5, "mma_64x64_split4", launchMma64x64, Values::k16_BITS, Lists::kBLOCKS, 64, 4, 32},
    {6, "mma_64x64_split16", launchMma64x64, Values::k16_BITS, Lists::kBLOCKS, 64, 16, 32},
    {7, "mma_64x32_split4", launchMma64x32, Values::k16_BITS, Lists::kBLOCKS, 32, 4, 32},
    {8, "mma_128x128_k64", launchMma128x128K64, Values::k16_BITS, Lists::kWHOLE_BLOCKS, 128, 1, 64},
    {9, "mma_128x64_k64", launchMma128x64K64, Values::k16_BITS, Lists::kWHOLE_BLOCKS, 64, 1, 64},
    {10, "mma_64x64_k64", launchMma64x64K64, Values::k16_BITS, Lists::kWHOLE_BLOCKS, 64, 1, 64},
    {11, "mma_128x32_k64", launchMma128x32K64, Values::k16_BITS, Lists::kWHOLE_BLOCKS, 32, 1, 64},
    {12, "mma_64x64_k64_split4", launchMma64x64K64, Values::k16_BITS, Lists::kWHOLE_BLOCKS, 64, 4, 64},
    {13, "mma_64x64_k64_split16", launchMma64x64K64, Values::k16_BITS, Lists::kWHOLE_BLOCKS, 64, 16, 64},
    {14, "tf32_128x64", launchTf32At128x64, Values::kTF32, Lists::kWHOLE_BLOCKS, 64, 1, 32},
    {15, "tf32_64x64", launchTf32At64x64, Values::kTF32, Lists::kWHOLE_BLOCKS, 64, 1, 32},
    {16, "tf32_64x64_split4", launchTf32At64x64, Values::kTF32, Lists::kWHOLE_BLOCKS, 64, 4, 32},
    {17, "simt_128x64", launchSimt128x64, Values::kFLOAT32, Lists::kWHOLE_BLOCKS, 64, 1, 32},
    {18, "simt_64x32", launchSimt64x32, Values::kFLOAT32, Lists::kWHOLE_BLOCKS, 32, 1, 32},
    {19, "simt_64x32_split4", launchSimt64x32, Values::kFLOAT32, Lists::kWHOLE_BLOCKS, 32, 4, 32},
    {20, "single_128x64", launchSingle128x64, Values::k16_BITS, Lists::kSINGLES, 64, 1, 64},
    {21, "single_128x32", launchSingle128x32, Values::k16_BITS, Lists::kSINGLES, 32, 1, 64},
    {22, "single_128x16", launchSingle128x16, Values::k16_BITS, Lists::kSINGLES, 16, 1, 64},
    {23, "single_128x32_split4", launchSingle128x32, Values::k16_BITS, Lists::kSINGLES, 32, 4, 64},
    {24, "single_tf32_128x64", launchSingleTf32At128x64, Values::kTF32, Lists::kSINGLES, 64, 1, 32},
    {25, "single_simt_64x32", launchSingleSimt64x32, Values::kFLOAT32, Lists::kSINGLES, 32, 1, 32},
    {26, "direct", launchDirect, Values::kANY, Lists::kDIRECT, 0, 1, 1},
    {32, "sparse_128x128", launchSparse128x128, Values::k16_BITS, Lists::kBLOCKS, 128, 1, 64, Weights::kTWO_FOUR},
    {33, "sparse_128x64", launchSparse128x64, Values::k16_BITS, Lists::kBLOCKS, 64, 1, 64, Weights::kTWO_FOUR},
    {34, "sparse_64x64", launchSparse64x64, Values::k16_BITS, Lists::kBLOCKS, 64, 1, 64, Weights::kTWO_FOUR},
    {35, "sparse_64x64_split4", launchSparse64x64, Values::k16_BITS, Lists::kBLOCKS, 64, 4, 64, Weights::kTWO_FOUR},
    {36, "sparse_singles_64x64", launchSparseSingles64x64, Values::k16_BITS, Lists::kANY, 64, 1, 64,
        Weights::kTWO_FOUR},
    {37, "sparse_singles_64x128", launchSparseSingles64x128, Values::k16_BITS, Lists::kANY, 128, 1, 64,
        Weights::kTWO_FOUR},
};

// The tactic with this number; null if there is none.
Tactic const* tacticOf(int32_t number)
{
    auto const* const found = std::find_if(
        std::begin(kTactics), std::end(kTactics), [&](Tactic const& tactic) { return tactic.number == number; });
    return found == std::end(kTactics) ? nullptr : found;
}

int32_t constexpr kChunk = 8; // 16-bit elements of a 16-byte copy
int32_t constexpr kMaxGridY = 65535;
// The smallest tile of all kernels except `direct`, for an upper bound on the number of blocks.
int32_t constexpr kFewestPixels = 64;
int32_t constexpr kFewestRows = 16;

// Partial sums have a column for each row of every tile, so that a tile's stores need no bounds check.
int32_t partialPitch(Tactic const& tactic, ConvProblem const& problem)
{
    return (problem.rows + tactic.tileRows - 1) / tactic.tileRows * tactic.tileRows;
}

size_t workspaceBytes(Tactic const& tactic, ConvProblem const& problem)
{
    return tactic.splits == 1 ? 0 : sizeof(float) * tactic.splits * pixelCount(problem) * partialPitch(tactic, problem);
}

char const* whyNotValues(Values values, Layer const& layer)
{
    bool const isFloat32 = layer.type == DataType::kFLOAT32;
    switch (values)
    {
    case Values::kANY:
        return nullptr;
    case Values::k16_BITS:
        return isFloat32 ? "needs float16 or bfloat16" : nullptr;
    case Values::kFLOAT32:
        return isFloat32 ? nullptr : "needs float32";
    case Values::kTF32:
        return isFloat32 && layer.allowTf32 ? nullptr : "needs float32 and allowTf32";
    }
    return "is unknown";
}

char const* whyNotWeights(Weights weights, Layer const& layer)
{
    switch (weights)
    {
    case Weights::kANY:
        return nullptr;
    case Weights::kDENSE:
        return layer.isTwoFour ? "takes no 2:4 weights (twoFour 1)" : nullptr;
    case Weights::kTWO_FOUR:
        return layer.isTwoFour ? nullptr : "needs 2:4 weights (twoFour 1)";
    }
    return "is unknown";
}

char const* whyNotBlocks(Layer const& layer)
{
    ConvProblem const& problem = layer.problem;
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
    bool const arePitchesWhole = problem.xPitch % kChunk == 0 && problem.yPitch % kChunk == 0
        && (!layer.hasResidual || problem.residualPitch % kChunk == 0);
    return arePitchesWhole ? nullptr : "needs pitches that are multiples of 8";
}

char const* whyNotSides(ConvProblem const& problem)
{
    return problem.kernelRows + problem.kernelColumns <= kMaxKernelSides
        ? nullptr
        : "needs kernels of 31 rows and columns together at most";
}

char const* whyNotLists(Lists lists, Layer const& layer)
{
    ConvProblem const& problem = layer.problem;
    switch (lists)
    {
    case Lists::kREFERENCE:
        return problem.rows < kMaxGridY ? nullptr : "more than 65534 rows";
    case Lists::kANY:
        return nullptr;
    case Lists::kBLOCKS:
        return whyNotBlocks(layer);
    case Lists::kWHOLE_BLOCKS:
        if (char const* const reason = whyNotBlocks(layer))
        {
            return reason;
        }
        return problem.channels % kChunk == 0 ? whyNotSides(problem) : "needs channels to be a multiple of 8";
    case Lists::kSINGLES:
        return whyNotSides(problem);
    case Lists::kDIRECT:
        if (!directFits(problem, elementSize(layer.type)))
        {
            return "needs a smaller kernel, stride or dilation";
        }
        return directBlocks(problem) <= INT32_MAX ? nullptr : "too many thread blocks";
    }
    return "is unknown";
}

// Why a tactic cannot compute a layer; null if it can.
char const* whyNot(Tactic const& tactic, Layer const& layer)
{
    ConvProblem const& problem = layer.problem;
    for (char const* const reason :
        {whyNotValues(tactic.values, layer), whyNotWeights(tactic.weights, layer), whyNotLists(tactic.lists, layer)})
    {
        if (reason != nullptr)
        {
            return reason;
        }
    }
    if (tactic.splits > 1 && problem.columns / tactic.step < tactic.splits)
    {
        return "needs longer lists";
    }
    int64_t const blocks = (pixelCount(problem) / kFewestPixels + 1) * (problem.rows / kFewestRows + 1);
    return tactic.tileRows == 0 || blocks <= INT32_MAX ? nullptr : "too many thread blocks";
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

// The problem with its tensors and, for a tactic that splits, with its workspace.
ConvProblem problemWith(Layer const& layer, Tactic const& tactic, trtkpConvTensors const* tensors)
{
    ConvProblem problem = layer.problem;
    Output const output = requireTensors(layer, tensors, static_cast<int64_t>(problem.rows) * problem.storedColumns);
    requirePointer("rowGroup", tensors->rowGroup, sizeof(int32_t));
    requirePointer("rowFilter", tensors->rowFilter, sizeof(int32_t));
    requireIf(layer.isTwoFour, "metadata", tensors->metadata, "twoFour");
    int64_t const tableBytes = sizeof(int32_t) * static_cast<int64_t>(problem.rows);
    output.requireApart("rowGroup", tensors->rowGroup, tableBytes);
    output.requireApart("rowFilter", tensors->rowFilter, tableBytes);
    output.requireApart("metadata", tensors->metadata, sizeof(int32_t) * metadataWords(problem));
    size_t const bytes = workspaceBytes(tactic, problem);
    if (bytes > 0)
    {
        requireWorkspace(*tensors, bytes, output);
        problem.partialPitch = partialPitch(tactic, problem);
        problem.partial = static_cast<float*>(tensors->workspace);
    }
    problem.splits = tactic.splits;
    problem.x = tensors->x;
    problem.weight = tensors->weight;
    problem.metadata = tensors->metadata;
    problem.index = tensors->index;
    problem.rowGroup = tensors->rowGroup;
    problem.rowFilter = tensors->rowFilter;
    problem.bias = tensors->bias;
    problem.residual = tensors->residual;
    problem.y = tensors->y;
    return problem;
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
            requireStruct("desc", desc);
            require(listBlock != nullptr, "listBlock is null");
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
            for (Tactic const& tactic : kTactics)
            {
                if (found < capacity && whyNot(tactic, layer) == nullptr)
                {
                    tactics[found++] = tactic.number;
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
            Layer const layer = checkedLayer(desc);
            Tactic const& chosen = checkedTactic(tactic, layer);
            trtkp::ConvProblem const problem = problemWith(layer, chosen, tensors);
            auto* const on = static_cast<cudaStream_t>(stream);
            cudaError_t status = chosen.launch(problem, layer.type, on);
            if (status == cudaSuccess && chosen.splits > 1)
            {
                status = trtkp::launchSplit(problem, layer.type, on);
            }
            requireLaunched(chosen.name, status);
        });
}

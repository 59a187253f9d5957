#include "layer.h"

#include "checks.h"
#include "error.h"

#include <cstdint>
#include <limits>
#include <vector>

namespace trtkp::capi
{
namespace
{

// Kernels add two extents in int32. No convolution comes near this limit.
int64_t constexpr kMaxExtent = 1 << 24;
int64_t constexpr kMaxIndex = std::numeric_limits<int32_t>::max();
// A thread block may compute this many pixels or rows past the last.
int64_t constexpr kMaxTile = 256;
int32_t constexpr kMaxTaps = 64;
int32_t constexpr kEntryRadix = 65536;
int32_t constexpr kBlock = 8;
// 2:4 weights: columns of a quad, columns of a step, and rows and words of a block of metadata in one step.
int32_t constexpr kQuad = 4;
int32_t constexpr kSparseStep = 64;
int32_t constexpr kMetadataRows = 16;
int32_t constexpr kMetadataWords = 32;

void requireRange(char const* name, int64_t value, int64_t low, int64_t high)
{
    require(value >= low && value <= high, name, " is ", value, ", not in [", low, ", ", high, "]");
}

// The product of non-negative factors. It is an error if it exceeds int32.
int64_t requireIndexable(char const* what, std::initializer_list<int64_t> factors)
{
    int64_t product = 1;
    for (int64_t const factor : factors)
    {
        require(factor == 0 || product <= kMaxIndex / factor, what, " has 2^31 elements or more; split the batch");
        product *= factor;
    }
    return product;
}

int32_t outputSize(
    char const* name, int64_t size, int64_t before, int64_t after, int64_t kernel, int64_t dilation, int64_t stride)
{
    int64_t const padded = size + before + after;
    int64_t const extent = (kernel - 1) * dilation + 1;
    require(extent <= padded, "the kernel's ", name, " with dilation is ", extent, ", more than the padded input's ",
        padded);
    return static_cast<int32_t>((padded - extent) / stride + 1);
}

void checkRanges(trtkpConvDesc const& desc)
{
    requireRange("dataType", desc.dataType, TRTKP_FLOAT32, TRTKP_BFLOAT16);
    for (auto const& [name, value] : {std::pair{"batch", desc.batch}, {"height", desc.height}, {"width", desc.width},
             {"filters", desc.filters}, {"strideH", desc.strideH}, {"strideW", desc.strideW},
             {"dilationH", desc.dilationH}, {"dilationW", desc.dilationW}, {"groups", desc.groups},
             {"listGroups", desc.listGroups}, {"rows", desc.rows}, {"xPitch", desc.xPitch}, {"yPitch", desc.yPitch}})
    {
        requireRange(name, value, 1, kMaxExtent);
    }
    requireRange("listLength", desc.listLength, 1, kMaxIndex);
    requireRange("channels", desc.channels, 1, kEntryRadix);
    for (auto const& [name, value] : {std::pair{"padTop", desc.padTop}, {"padLeft", desc.padLeft},
             {"padBottom", desc.padBottom}, {"padRight", desc.padRight}, {"residualPitch", desc.residualPitch}})
    {
        requireRange(name, value, 0, kMaxExtent);
    }
    requireRange("kernelRows", desc.kernelRows, 1, kMaxTaps);
    requireRange("kernelColumns", desc.kernelColumns, 1, kMaxTaps);
    requireRange("kernelRows * kernelColumns", desc.kernelRows * desc.kernelColumns, 1, kMaxTaps);
    requireRange("listKind", desc.listKind, TRTKP_CHANNELS, TRTKP_ENTRIES);
    requireRange("hasBias", desc.hasBias, 0, 1);
    requireRange("hasResidual", desc.hasResidual, 0, 1);
    requireRange("allowTf32", desc.allowTf32, 0, 1);
    requireRange("twoFour", desc.twoFour, 0, 1);
    requireRange("activation", desc.activation, TRTKP_NO_ACTIVATION, TRTKP_LEAKY_RELU);
    require(desc.listBlock == 1 || desc.listBlock == kBlock, "listBlock is ", desc.listBlock, ", not 1 or 8");
    require(desc.filters % desc.groups == 0, "filters (", desc.filters, ") is not a multiple of groups (", desc.groups,
        ")");
    require(desc.rows >= desc.filters, "rows (", desc.rows, ") is less than filters (", desc.filters, ")");
    require(desc.listGroups <= desc.rows, "listGroups (", desc.listGroups, ") is more than rows (", desc.rows, ")");
    require(static_cast<int64_t>(desc.channels) * desc.groups <= desc.xPitch, "xPitch (", desc.xPitch,
        ") is less than channels * groups (", static_cast<int64_t>(desc.channels) * desc.groups, ")");
    require(desc.yPitch >= desc.filters, "yPitch (", desc.yPitch, ") is less than filters (", desc.filters, ")");
    require(desc.hasResidual == 0 || desc.residualPitch >= desc.filters, "residualPitch (", desc.residualPitch,
        ") is less than filters (", desc.filters, ")");
}

} // namespace

int32_t elementSize(DataType type)
{
    return type == DataType::kFLOAT32 ? 4 : 2;
}

Layer checkedLayer(trtkpConvDesc const* desc)
{
    requireDesc(desc);
    checkRanges(*desc);

    Layer layer{};
    ConvProblem& problem = layer.problem;
    layer.type = static_cast<DataType>(desc->dataType);
    layer.listBlock = desc->listBlock;
    layer.hasBias = desc->hasBias != 0;
    layer.hasResidual = desc->hasResidual != 0;
    layer.allowTf32 = desc->allowTf32 != 0;
    layer.isTwoFour = desc->twoFour != 0;
    problem.batch = desc->batch;
    problem.height = desc->height;
    problem.width = desc->width;
    problem.channels = desc->channels;
    problem.filters = desc->filters;
    problem.kernelRows = desc->kernelRows;
    problem.kernelColumns = desc->kernelColumns;
    problem.strideH = desc->strideH;
    problem.strideW = desc->strideW;
    problem.padTop = desc->padTop;
    problem.padLeft = desc->padLeft;
    problem.padBottom = desc->padBottom;
    problem.padRight = desc->padRight;
    problem.dilationH = desc->dilationH;
    problem.dilationW = desc->dilationW;
    problem.groups = desc->groups;
    problem.outHeight = outputSize(
        "height", desc->height, desc->padTop, desc->padBottom, desc->kernelRows, desc->dilationH, desc->strideH);
    problem.outWidth = outputSize(
        "width", desc->width, desc->padLeft, desc->padRight, desc->kernelColumns, desc->dilationW, desc->strideW);
    problem.listKind = static_cast<ListKind>(desc->listKind);
    problem.listGroups = desc->listGroups;
    problem.listLength = desc->listLength;
    problem.rows = desc->rows;
    problem.xPitch = desc->xPitch;
    problem.yPitch = desc->yPitch;
    problem.residualPitch = layer.hasResidual ? desc->residualPitch : 0;
    problem.activation = static_cast<Activation>(desc->activation);
    problem.alpha = desc->alpha;

    int64_t const taps = static_cast<int64_t>(desc->kernelRows) * desc->kernelColumns;
    int64_t const perEntry = problem.listKind == ListKind::kCHANNELS ? taps
        : problem.listKind == ListKind::kTAPS                        ? desc->channels
                                                                     : 1;
    problem.columns = static_cast<int32_t>(requireIndexable("a row of weight", {perEntry, desc->listLength}));

    // Each quad of columns belongs to one tap if the number of columns of a tap is a multiple of four.
    int32_t const run = problem.listKind == ListKind::kTAPS ? desc->channels : desc->listLength;
    require(!layer.isTwoFour || run % kQuad == 0, problem.listKind == ListKind::kTAPS ? "channels" : "listLength",
        " is ", run, ": 2:4 weights need a multiple of 4");
    problem.storedColumns
        = layer.isTwoFour ? (problem.columns + kSparseStep - 1) / kSparseStep * (kSparseStep / 2) : problem.columns;

    // Kernels compute addresses of taps in the padding before they discard them, so x is measured with its padding.
    requireIndexable("x with its padding",
        {desc->batch, desc->height + static_cast<int64_t>(desc->padTop) + desc->padBottom,
            desc->width + static_cast<int64_t>(desc->padLeft) + desc->padRight, desc->xPitch});
    int64_t const pixels = requireIndexable("y", {desc->batch, problem.outHeight, problem.outWidth});
    requireIndexable("y", {pixels + kMaxTile, desc->yPitch});
    requireIndexable("residual", {pixels + kMaxTile, desc->residualPitch});
    requireIndexable("weight", {desc->rows + kMaxTile, problem.columns + static_cast<int64_t>(kMaxTile)});
    requireIndexable("index", {desc->listGroups, desc->listLength});
    return layer;
}

int32_t checkedLists(Layer const& layer, int32_t const* index, int32_t const* rowGroup, int32_t const* rowFilter)
{
    require(index != nullptr, "index is null");
    require(rowGroup != nullptr, "rowGroup is null");
    require(rowFilter != nullptr, "rowFilter is null");
    ConvProblem const& problem = layer.problem;
    int32_t const taps = problem.kernelRows * problem.kernelColumns;
    int32_t const perGroup = problem.filters / problem.groups;

    std::vector<bool> seen(static_cast<size_t>(problem.filters));
    int32_t onnxGroup = -1;
    bool padded = false;
    for (int32_t row = 0; row < problem.rows; ++row)
    {
        bool const isFirst = row == 0 || rowGroup[row] != rowGroup[row - 1];
        require(rowGroup[row] >= 0 && rowGroup[row] < problem.listGroups, "rowGroup[", row, "] is ", rowGroup[row],
            ", not in [0, ", problem.listGroups, ")");
        require(row == 0 || rowGroup[row] >= rowGroup[row - 1], "rowGroup[", row, "] descends");
        require(rowFilter[row] >= 0 && rowFilter[row] <= problem.filters, "rowFilter[", row, "] is ", rowFilter[row],
            ", not in [0, ", problem.filters, "]");
        padded = padded && !isFirst;
        if (rowFilter[row] == problem.filters)
        {
            padded = true;
            continue;
        }
        require(!padded, "rowFilter[", row, "]: padding rows must follow the others of their group");
        require(!seen[rowFilter[row]], "rowFilter[", row, "]: filter ", rowFilter[row], " has a row already");
        seen[rowFilter[row]] = true;
        require(isFirst || rowFilter[row] / perGroup == onnxGroup, "rowFilter[", row, "]: filter group ", rowGroup[row],
            " crosses ONNX groups");
        onnxGroup = rowFilter[row] / perGroup;
    }
    for (int32_t filter = 0; filter < problem.filters; ++filter)
    {
        require(seen[filter], "filter ", filter, " has no row");
    }

    int64_t const padding = problem.listKind == ListKind::kCHANNELS ? problem.channels
        : problem.listKind == ListKind::kTAPS                       ? taps
                                                                    : static_cast<int64_t>(taps) * kEntryRadix;
    bool inBlocks
        = problem.listKind == ListKind::kTAPS ? problem.channels % kBlock == 0 : problem.listLength % kBlock == 0;
    for (int64_t at = 0; at < static_cast<int64_t>(problem.listGroups) * problem.listLength; ++at)
    {
        int32_t const entry = index[at];
        bool const isPadding = entry == padding;
        require(entry >= 0 && entry <= padding, "index[", at, "] is ", entry, ", not in [0, ", padding, "]");
        require(problem.listKind != ListKind::kENTRIES || isPadding || entry % kEntryRadix < problem.channels, "index[",
            at, "] is ", entry, ": its channel is not below ", problem.channels);
        int64_t const ofQuad = at % problem.listLength % kQuad;
        require(!layer.isTwoFour || problem.listKind != ListKind::kENTRIES || isPadding || index[at - ofQuad] == padding
                || entry / kEntryRadix == index[at - ofQuad] / kEntryRadix,
            "index[", at, "] is ", entry, ": not of the tap that its quad begins with");
        if (problem.listKind == ListKind::kTAPS || !inBlocks)
        {
            continue;
        }
        int64_t const place = at % problem.listLength % kBlock;
        int32_t const first = index[at - place];
        // The channel that a kernel assumes here if it reads only the first entry of a block.
        int64_t const channel = first % kEntryRadix + place;
        bool const pastLast = first == padding || channel >= problem.channels;
        bool const isExpected = pastLast ? isPadding : entry == first + place;
        inBlocks = isExpected && (first == padding || first % kEntryRadix % kBlock == 0);
    }
    return inBlocks ? kBlock : 1;
}

int64_t metadataWords(ConvProblem const& problem)
{
    int64_t const blocks = (problem.rows + kMetadataRows - 1) / kMetadataRows;
    return blocks * (problem.storedColumns / (kSparseStep / 2)) * kMetadataWords;
}

void checkMetadata(Layer const& layer, int32_t const* metadata)
{
    require(layer.isTwoFour, "twoFour is 0: there is no metadata");
    require(metadata != nullptr, "metadata is null");
    ConvProblem const& problem = layer.problem;
    for (int64_t at = 0; at < metadataWords(problem); ++at)
    {
        auto const word = static_cast<uint32_t>(metadata[at]);
        for (int32_t shift = 0; shift < 32; shift += 4)
        {
            uint32_t const low = word >> shift & 3U;
            uint32_t const high = word >> (shift + 2) & 3U;
            require(low < high, "metadata[", at, "]: places ", low, " and ", high, " of quad ", shift / 4,
                " are not in ascending order");
        }
    }
}

} // namespace trtkp::capi

#include "settings.h"

#include "error.h"
#include "family.h"
#include "tactics.h"

#include <cmath>

namespace trtkp::glue
{
namespace
{

using nvinfer1::PluginFieldType;
using nvinfer1::TensorRTPhase;

// Increases when the fields that an engine stores change. Version 1 has no `tactic`, which is optional.
int32_t constexpr kFormatVersion = 2;
int32_t constexpr kOldestFormat = 1;

struct Member
{
    FieldSpec spec;
    void const* (*at)(Settings const& settings);
    bool isRequired;
};

// The fields of an operator. The dynamic pattern has `channels` instead of `group`; only LeakyRelu has alpha.
std::vector<Member> members(Operator const& op)
{
    auto constexpr kINT32 = PluginFieldType::kINT32;
    std::vector<Member> all{
        {{"strides", kINT32, 2}, [](Settings const& s) -> void const* { return s.strides.data(); }, true},
        {{"pads", kINT32, 4}, [](Settings const& s) -> void const* { return s.pads.data(); }, true},
        {{"dilations", kINT32, 2}, [](Settings const& s) -> void const* { return s.dilations.data(); }, true},
        {{"weight_shape", kINT32, 4}, [](Settings const& s) -> void const* { return s.weightShape.data(); }, true},
    };
    if (op.family == &kDynamicPatternConv)
    {
        all.push_back(
            {{"channels", kINT32, 1}, [](Settings const& s) -> void const* { return &s.weightShape[1]; }, true});
    }
    else
    {
        all.push_back({{"group", kINT32, 1}, [](Settings const& s) -> void const* { return &s.group; }, true});
        all.push_back(
            {{"list_block", kINT32, 1}, [](Settings const& s) -> void const* { return &s.listBlock; }, false});
    }
    if (op.activation == TRTKP_LEAKY_RELU)
    {
        all.push_back(
            {{"alpha", PluginFieldType::kFLOAT32, 1}, [](Settings const& s) -> void const* { return &s.alpha; }, true});
    }
    return all;
}

FieldSpec constexpr kFormat{"format_version", PluginFieldType::kINT32, 1};
FieldSpec constexpr kPins{"tactic", PluginFieldType::kCHAR, kAnyLength};

// Checks everything that the C interface can check without tensors.
void checkGeometry(Operator const& op, Settings const& settings)
{
    auto const& [filters, channels, kernelRows, kernelColumns] = settings.weightShape;
    require(filters >= 1 && channels >= 1 && kernelRows >= 1 && kernelColumns >= 1, "weight_shape is [", filters, ", ",
        channels, ", ", kernelRows, ", ", kernelColumns, "], not of positive sizes");
    require(settings.group >= 1, "group is ", settings.group, ", not positive");
    require(settings.listBlock == 1 || settings.listBlock == 8, "list_block is ", settings.listBlock, ", not 1 or 8");
    require(std::isfinite(settings.alpha), "alpha is ", settings.alpha);
    trtkpConvDesc desc = convDesc(op, settings);
    int64_t const height = static_cast<int64_t>(kernelRows - 1) * settings.dilations[0] + 1;
    int64_t const width = static_cast<int64_t>(kernelColumns - 1) * settings.dilations[1] + 1;
    int64_t const inputChannels = static_cast<int64_t>(channels) * settings.group;
    require(height <= INT32_MAX && width <= INT32_MAX && inputChannels <= INT32_MAX, "the layer is too large");
    desc.dataType = TRTKP_FLOAT16;
    desc.batch = 1;
    desc.height = static_cast<int32_t>(height);
    desc.width = static_cast<int32_t>(width);
    desc.listGroups = 1;
    desc.listLength = 1;
    desc.rows = filters;
    desc.xPitch = static_cast<int32_t>(inputChannels);
    desc.yPitch = filters;
    desc.residualPitch = op.hasResidual ? filters : 0;
    desc.twoFour = 0;
    int32_t outHeight = 0;
    int32_t outWidth = 0;
    require(trtkpConvOutputSize(&desc, &outHeight, &outWidth) == TRTKP_OK, trtkpLastError());
}

} // namespace

std::vector<FieldSpec> fieldSpecs(Operator const& op, TensorRTPhase phase)
{
    std::vector<FieldSpec> specs;
    for (Member const& member : members(op))
    {
        specs.push_back(member.spec);
    }
    specs.push_back(kPins);
    if (phase == TensorRTPhase::kRUNTIME)
    {
        specs.push_back(kFormat);
    }
    return specs;
}

Settings readSettings(Operator const& op, nvinfer1::PluginFieldCollection const* fields, TensorRTPhase phase)
{
    checkNames(fields, fieldSpecs(op, phase));
    if (phase == TensorRTPhase::kRUNTIME)
    {
        int32_t version = 0;
        require(readField(*fields, kFormat, &version), "field ", kFormat.name, " is missing");
        require(version >= kOldestFormat && version <= kFormatVersion, kFormat.name, " is ", version,
            ", this library reads ", kOldestFormat, " to ", kFormatVersion, ": build the engine anew");
    }
    Settings settings;
    for (Member const& member : members(op))
    {
        // `channels` repeats a value of weight_shape, so it is read separately and compared.
        bool const isRepeated = member.at(settings) == &settings.weightShape[1];
        int32_t repeated = 0;
        void* const target = isRepeated ? &repeated : const_cast<void*>(member.at(settings));
        bool const isThere = readField(*fields, member.spec, target);
        require(isThere || !member.isRequired, "field ", member.spec.name, " is missing");
        require(!isRepeated || repeated == settings.weightShape[1], "channels is ", repeated,
            ", unlike weight_shape's ", settings.weightShape[1]);
    }
    settings.pins = readText(*fields, kPins);
    checkPins(settings.pins);
    checkGeometry(op, settings);
    return settings;
}

std::vector<nvinfer1::PluginField> writeSettings(Operator const& op, Settings const& settings)
{
    std::vector<nvinfer1::PluginField> fields;
    for (Member const& member : members(op))
    {
        fields.emplace_back(member.spec.name, member.at(settings), member.spec.type, member.spec.length);
    }
    if (!settings.pins.empty())
    {
        fields.emplace_back(kPins.name, settings.pins.data(), kPins.type, static_cast<int32_t>(settings.pins.size()));
    }
    fields.emplace_back(kFormat.name, &kFormatVersion, kFormat.type, kFormat.length);
    return fields;
}

std::string describe(Settings const& settings)
{
    std::ostringstream text;
    auto const list = [&](char const* name, auto const& values)
    {
        text << name;
        for (size_t i = 0; i < values.size(); ++i)
        {
            text << (i == 0 ? "=" : ",") << values[i];
        }
        text << ' ';
    };
    list("strides", settings.strides);
    list("pads", settings.pads);
    list("dilations", settings.dilations);
    list("weight_shape", settings.weightShape);
    text << "group=" << settings.group << " list_block=" << settings.listBlock << " alpha=" << settings.alpha;
    if (!settings.pins.empty())
    {
        text << " tactic=" << settings.pins;
    }
    return text.str();
}

trtkpConvDesc convDesc(Operator const& op, Settings const& settings)
{
    trtkpConvDesc desc{};
    desc.structSize = sizeof(desc);
    desc.interfaceVersion = TRTKP_INTERFACE_VERSION;
    desc.filters = settings.weightShape[0];
    desc.channels = settings.weightShape[1];
    desc.kernelRows = settings.weightShape[2];
    desc.kernelColumns = settings.weightShape[3];
    desc.strideH = settings.strides[0];
    desc.strideW = settings.strides[1];
    desc.padTop = settings.pads[0];
    desc.padLeft = settings.pads[1];
    desc.padBottom = settings.pads[2];
    desc.padRight = settings.pads[3];
    desc.dilationH = settings.dilations[0];
    desc.dilationW = settings.dilations[1];
    desc.groups = settings.group;
    desc.listBlock = settings.listBlock;
    desc.hasBias = 1;
    desc.hasResidual = op.hasResidual ? 1 : 0;
    desc.activation = op.activation;
    desc.alpha = settings.alpha;
    desc.twoFour = op.twoFour ? 1 : 0;
    return desc;
}

} // namespace trtkp::glue

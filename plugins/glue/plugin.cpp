#include "plugin.h"

#include "build_id.h"
#include "device.h"
#include "error.h"
#include "names.h"
#include "tactics.h"

#include <algorithm>
#include <string_view>

namespace trtkp::glue
{
namespace
{

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::IDimensionExpr;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorFormat;

int32_t constexpr kFailure = -1;

// The most that partial sums may take. Split tactics pay for few pixels, but their sums grow with the number of pixels.
// TensorRT asks for the workspace before it has chosen a tactic, so a large one would count for the whole engine. At
// shapes that need more, the tactic with the same tile computes the layer without a split.
size_t constexpr kMaxPartialBytes = size_t{64} << 20;

// TensorRT reserves 0 for its default tactic, so its numbers are ours plus one.
int32_t toTensorRt(int32_t tactic)
{
    return tactic + 1;
}

int32_t fromTensorRt(int32_t tactic)
{
    return tactic - 1;
}

bool isActivationType(DataType type)
{
    return type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16;
}

// Formats in which the channels of a pixel are neighbours. In 16-bit types they are padded to a multiple of 8, which
// TensorRT does not offer for float32.
TensorFormat activationFormat(DataType type)
{
    return type == DataType::kFLOAT ? TensorFormat::kHWC : TensorFormat::kHWC8;
}

bool isEmpty(PluginTensorDesc const& tensor)
{
    return std::any_of(
        tensor.dims.d, tensor.dims.d + std::max(tensor.dims.nbDims, 0), [](int64_t size) { return size == 0; });
}

// The tactic to use if nothing was timed: the first one after the reference kernel, which is slow.
int32_t defaultTactic(Tactics const& tactics)
{
    return *(tactics.size() > 1 ? tactics.begin() + 1 : tactics.begin());
}

Tactics tacticsOf(Call const& call)
{
    return std::visit([](auto const& known) { return known.tactics(); }, call);
}

size_t workspaceBytes(Call const& call, int32_t tactic)
{
    return std::visit([&](auto const& known) { return known.workspaceBytes(tactic); }, call);
}

bool isSame(PluginTensorDesc const& first, PluginTensorDesc const& second)
{
    int32_t const rank = std::clamp(first.dims.nbDims, 0, Dims::MAX_DIMS);
    return first.dims.nbDims == second.dims.nbDims && first.type == second.type && first.format == second.format
        && std::equal(first.dims.d, first.dims.d + rank, second.dims.d);
}

} // namespace

Plugin::Plugin(Operator const& op, Settings const& settings, Host const* host)
    : mOperator{op}
    , mHost{host}
    , mSettings{settings}
    , mTimingCacheId{op.name + ' ' + describe(settings) + " library=" + buildId()}
    , mMetadata{op.name + ' ' + describe(settings)}
{
}

template <typename Result, typename Body>
Result Plugin::answer(char const* function, Result failure, Body const& body) const noexcept
{
    return guarded(mHost, mOperator.name.c_str(), function, mRecorder, failure, body);
}

void Plugin::checkCounts(int32_t nbInputs, int32_t nbOutputs) const
{
    auto const expected = static_cast<int32_t>(mOperator.inputs.size());
    require(nbInputs == expected, "there are ", nbInputs, " inputs, not ", expected);
    require(nbOutputs == 1, "there are ", nbOutputs, " outputs, not 1");
}

std::optional<Call> Plugin::callFor(
    Extent extent, DynamicPluginTensorDesc const* in, DynamicPluginTensorDesc const* out) const
{
    auto const at = [&](DynamicPluginTensorDesc const& tensor)
    {
        PluginTensorDesc desc = tensor.desc;
        desc.dims = extent == Extent::kMIN ? tensor.min : extent == Extent::kOPT ? tensor.opt : tensor.max;
        return desc;
    };
    std::array<PluginTensorDesc, kMaxInputs> inputs{};
    std::transform(in, in + mOperator.inputs.size(), inputs.begin(), at);
    return isEmpty(inputs.front())
        ? std::nullopt
        : std::optional{mOperator.family->call(mOperator, mSettings, inputs.data(), at(*out))};
}

Tactics Plugin::tacticsFor(DynamicPluginTensorDesc const* in, DynamicPluginTensorDesc const* out) const
{
    auto const largest = callFor(Extent::kMAX, in, out);
    require(largest.has_value(), "X is empty at its greatest shape");
    Tactics tactics = tacticsOf(*largest);
    for (Extent const extent : {Extent::kMIN, Extent::kOPT})
    {
        if (auto const call = callFor(extent, in, out))
        {
            tactics.keepIf([others = tacticsOf(*call)](int32_t tactic) { return others.has(tactic); });
        }
    }
    if (auto const typical = callFor(Extent::kOPT, in, out))
    {
        tactics.keepIf([&](int32_t tactic) { return chosen(*typical, tactic).tactic == tactic; });
    }
    require(tactics.size() > 0, "no tactic computes the layer at every shape of the profile");
    return tactics;
}

std::string_view Plugin::pinnedName() const
{
    return mSettings.pins.empty() ? std::string_view{} : pinnedFor(mSettings.pins, currentCapability());
}

Tactics Plugin::offered(Tactics tactics) const
{
    int32_t const pinned = tacticOf(pinnedName());
    if (tactics.has(pinned))
    {
        tactics.keepIf([&](int32_t tactic) { return tactic == pinned; });
    }
    return tactics;
}

Plugin::Choice Plugin::chosen(Call const& call, int32_t tactic)
{
    size_t const bytes = workspaceBytes(call, tactic);
    int32_t const unsplit = bytes > kMaxPartialBytes ? unsplitOf(tactic) : -1;
    return unsplit < 0 ? Choice{tactic, bytes} : Choice{unsplit, workspaceBytes(call, unsplit)};
}

Plugin::Launch Plugin::launchFor(PluginTensorDesc const* in, PluginTensorDesc const* out) const
{
    Launch launch;
    *std::copy_n(in, mOperator.inputs.size(), launch.tensors.begin()) = *out;
    if (!isEmpty(*in))
    {
        launch.call = mOperator.family->call(mOperator, mSettings, in, *out);
        launch.choice
            = chosen(*launch.call, mTactic == 0 ? defaultTactic(tacticsOf(*launch.call)) : fromTensorRt(mTactic));
    }
    return launch;
}

bool Plugin::isFor(Launch const& launch, PluginTensorDesc const* in, PluginTensorDesc const* out) const
{
    auto const* const tensors = launch.tensors.data();
    return std::equal(in, in + mOperator.inputs.size(), tensors, isSame)
        && isSame(*out, tensors[mOperator.inputs.size()]);
}

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept
{
    switch (type)
    {
    case nvinfer1::PluginCapabilityType::kCORE:
        return static_cast<IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD:
        return static_cast<IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME:
        return static_cast<IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

nvinfer1::IPluginV3* Plugin::clone() noexcept
{
    return answer<IPluginV3*>("clone", nullptr, [&] { return new Plugin{*this}; });
}

nvinfer1::AsciiChar const* Plugin::getPluginName() const noexcept
{
    return mOperator.name.c_str();
}

nvinfer1::AsciiChar const* Plugin::getPluginVersion() const noexcept
{
    return kVersion;
}

nvinfer1::AsciiChar const* Plugin::getPluginNamespace() const noexcept
{
    return kNamespace;
}

int32_t Plugin::configurePlugin(
    DynamicPluginTensorDesc const* in, int32_t nbInputs, DynamicPluginTensorDesc const* out, int32_t nbOutputs) noexcept
{
    return answer("configurePlugin", kFailure,
        [&]
        {
            checkCounts(nbInputs, nbOutputs);
            Tactics const all = tacticsFor(in, out);
            mTactics = offered(all);
            mIsTacticSet = false;
            std::string_view const pinned = pinnedName();
            if (!pinned.empty() && !all.has(tacticOf(pinned)) && !mHasWarned)
            {
                mHasWarned = true;
                log(mHost, Severity::kWARNING,
                    mOperator.name + ": the pinned tactic " + std::string{pinned}
                        + " does not compute every shape of the profile, so TensorRT chooses another");
            }
            return 0;
        });
}

int32_t Plugin::getOutputDataTypes(
    DataType* outputTypes, int32_t nbOutputs, DataType const* inputTypes, int32_t nbInputs) const noexcept
{
    return answer("getOutputDataTypes", kFailure,
        [&]
        {
            checkCounts(nbInputs, nbOutputs);
            require(isActivationType(inputTypes[0]), "X is of data type ", static_cast<int32_t>(inputTypes[0]),
                ", not float32, float16 or bfloat16");
            for (int32_t i = 0; i < nbInputs; ++i)
            {
                bool const isIndex = mOperator.inputs[i].role == InputRole::kINDEX;
                require(inputTypes[i] == (isIndex ? DataType::kINT32 : inputTypes[0]), mOperator.inputs[i].name,
                    " is of data type ", static_cast<int32_t>(inputTypes[i]), isIndex ? ", not int32" : ", unlike X");
            }
            outputTypes[0] = inputTypes[0];
            return 0;
        });
}

int32_t Plugin::getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t nbInputs, nvinfer1::DimsExprs const*,
    int32_t, nvinfer1::DimsExprs* outputs, int32_t nbOutputs, nvinfer1::IExprBuilder& builder) noexcept
{
    return answer("getOutputShapes", kFailure,
        [&]
        {
            using nvinfer1::DimensionOperation;
            checkCounts(nbInputs, nbOutputs);
            require(inputs[0].nbDims == 4, "X has ", inputs[0].nbDims, " dimensions, not 4");
            // floor((size + padding - extent) / stride) + 1
            auto const along = [&](int32_t axis) -> IDimensionExpr const*
            {
                int64_t const padding = static_cast<int64_t>(mSettings.pads[axis]) + mSettings.pads[axis + 2];
                int64_t const extent
                    = static_cast<int64_t>(mSettings.weightShape[axis + 2] - 1) * mSettings.dilations[axis] + 1;
                auto const* const slack = builder.operation(
                    DimensionOperation::kSUM, *inputs[0].d[axis + 2], *builder.constant(padding - extent));
                auto const* const steps = builder.operation(
                    DimensionOperation::kFLOOR_DIV, *slack, *builder.constant(mSettings.strides[axis]));
                return builder.operation(DimensionOperation::kSUM, *steps, *builder.constant(1));
            };
            outputs[0].nbDims = 4;
            outputs[0].d[0] = inputs[0].d[0];
            outputs[0].d[1] = builder.constant(mSettings.weightShape[0]);
            outputs[0].d[2] = along(0);
            outputs[0].d[3] = along(1);
            return 0;
        });
}

bool Plugin::supportsFormatCombination(
    int32_t pos, DynamicPluginTensorDesc const* inOut, int32_t nbInputs, int32_t nbOutputs) noexcept
{
    return answer("supportsFormatCombination", false,
        [&]
        {
            checkCounts(nbInputs, nbOutputs);
            require(pos >= 0 && pos < nbInputs + nbOutputs, "position ", pos, " is none");
            PluginTensorDesc const& tensor = inOut[pos].desc;
            DataType const type = inOut[0].desc.type;
            switch (pos < nbInputs ? mOperator.inputs[pos].role : InputRole::kACTIVATION)
            {
            case InputRole::kACTIVATION:
                return isActivationType(type) && tensor.type == type && tensor.format == activationFormat(type);
            case InputRole::kPLAIN:
                return tensor.type == type && tensor.format == TensorFormat::kLINEAR;
            case InputRole::kINDEX:
                return tensor.type == DataType::kINT32 && tensor.format == TensorFormat::kLINEAR;
            }
            return false;
        });
}

int32_t Plugin::getNbOutputs() const noexcept
{
    return 1;
}

size_t Plugin::getWorkspaceSize(DynamicPluginTensorDesc const* in, int32_t nbInputs, DynamicPluginTensorDesc const* out,
    int32_t nbOutputs) const noexcept
{
    return answer("getWorkspaceSize", size_t{0},
        [&]
        {
            checkCounts(nbInputs, nbOutputs);
            size_t most = 0;
            if (auto const largest = callFor(Extent::kMAX, in, out))
            {
                Tactics tactics = offered(tacticsFor(in, out));
                int32_t const set = fromTensorRt(mTactic);
                if (mIsTacticSet && tactics.has(set))
                {
                    tactics.keepIf([&](int32_t tactic) { return tactic == set; });
                }
                for (int32_t const tactic : tactics)
                {
                    size_t const bytes = workspaceBytes(*largest, tactic);
                    most = std::max(most, unsplitOf(tactic) < 0 ? bytes : std::min(bytes, kMaxPartialBytes));
                }
            }
            return most;
        });
}

int32_t Plugin::getValidTactics(int32_t* tactics, int32_t nbTactics) noexcept
{
    return answer("getValidTactics", kFailure,
        [&]
        {
            require(nbTactics == getNbTactics(), "there is room for ", nbTactics, " tactics, not ", getNbTactics());
            std::transform(mTactics.begin(), mTactics.end(), tactics, toTensorRt);
            return 0;
        });
}

int32_t Plugin::getNbTactics() noexcept
{
    return static_cast<int32_t>(mTactics.size());
}

char const* Plugin::getTimingCacheID() noexcept
{
    return mTimingCacheId.c_str();
}

char const* Plugin::getMetadataString() noexcept
{
    return mMetadata.c_str();
}

int32_t Plugin::setTactic(int32_t tactic) noexcept
{
    return answer("setTactic", kFailure,
        [&]
        {
            require(tactic == 0 || trtkpTacticName(fromTensorRt(tactic)) != nullptr, "tactic ", tactic, " is none");
            mIsTacticSet = true;
            if (tactic != mTactic)
            {
                mTactic = tactic;
                mLaunch.reset();
            }
            return 0;
        });
}

int32_t Plugin::onShapeChange(
    PluginTensorDesc const* in, int32_t nbInputs, PluginTensorDesc const* out, int32_t nbOutputs) noexcept
{
    return answer("onShapeChange", kFailure,
        [&]
        {
            checkCounts(nbInputs, nbOutputs);
            mLaunch = launchFor(in, out);
            return 0;
        });
}

int32_t Plugin::enqueue(PluginTensorDesc const* inputDesc, PluginTensorDesc const* outputDesc,
    void const* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) noexcept
{
    return answer("enqueue", kFailure,
        [&]
        {
            if (!mLaunch.has_value() || !isFor(*mLaunch, inputDesc, outputDesc))
            {
                mLaunch = launchFor(inputDesc, outputDesc);
            }
            if (mLaunch->call.has_value())
            {
                auto const& [tactic, bytes] = mLaunch->choice;
                std::visit([&, tactic = tactic, bytes = bytes](auto const& call)
                    { call.launch(tactic, inputs, outputs[0], workspace, bytes, stream); }, *mLaunch->call);
            }
            return 0;
        });
}

nvinfer1::IPluginV3* Plugin::attachToContext(nvinfer1::IPluginResourceContext* context) noexcept
{
    return answer<IPluginV3*>("attachToContext", nullptr,
        [&]
        {
            auto* const attached = new Plugin{*this};
            attached->mRecorder = context == nullptr ? nullptr : context->getErrorRecorder();
            return attached;
        });
}

nvinfer1::PluginFieldCollection const* Plugin::getFieldsToSerialize() noexcept
{
    return answer<nvinfer1::PluginFieldCollection const*>("getFieldsToSerialize", nullptr,
        [&]
        {
            mFields = writeSettings(mOperator, mSettings);
            mCollection = {static_cast<int32_t>(mFields.size()), mFields.data()};
            return &mCollection;
        });
}

} // namespace trtkp::glue

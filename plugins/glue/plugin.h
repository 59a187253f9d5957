// An operator as a TensorRT plugin (IPluginV3), with core, build and runtime interfaces in one object.
#pragma once

#include "family.h"
#include "host.h"
#include "settings.h"

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace trtkp::glue
{

class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuild,
                     public nvinfer1::IPluginV3OneRuntime
{
public:
    // `host` is the TensorRT that made the plugin; null if it is not known.
    Plugin(Operator const& op, Settings const& settings, Host const* host);

    // IPluginV3
    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
    nvinfer1::IPluginV3* clone() noexcept override;

    // Core
    nvinfer1::AsciiChar const* getPluginName() const noexcept override;
    nvinfer1::AsciiChar const* getPluginVersion() const noexcept override;
    nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override;

    // Build
    int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, int32_t nbInputs,
        nvinfer1::DynamicPluginTensorDesc const* out, int32_t nbOutputs) noexcept override;
    int32_t getOutputDataTypes(nvinfer1::DataType* outputTypes, int32_t nbOutputs, nvinfer1::DataType const* inputTypes,
        int32_t nbInputs) const noexcept override;
    int32_t getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t nbInputs, nvinfer1::DimsExprs const* shapeInputs,
        int32_t nbShapeInputs, nvinfer1::DimsExprs* outputs, int32_t nbOutputs,
        nvinfer1::IExprBuilder& builder) noexcept override;
    bool supportsFormatCombination(int32_t pos, nvinfer1::DynamicPluginTensorDesc const* inOut, int32_t nbInputs,
        int32_t nbOutputs) noexcept override;
    int32_t getNbOutputs() const noexcept override;
    size_t getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* in, int32_t nbInputs,
        nvinfer1::DynamicPluginTensorDesc const* out, int32_t nbOutputs) const noexcept override;
    int32_t getValidTactics(int32_t* tactics, int32_t nbTactics) noexcept override;
    int32_t getNbTactics() noexcept override;
    char const* getTimingCacheID() noexcept override;
    char const* getMetadataString() noexcept override;

    // Runtime
    int32_t setTactic(int32_t tactic) noexcept override;
    int32_t onShapeChange(nvinfer1::PluginTensorDesc const* in, int32_t nbInputs, nvinfer1::PluginTensorDesc const* out,
        int32_t nbOutputs) noexcept override;
    int32_t enqueue(nvinfer1::PluginTensorDesc const* inputDesc, nvinfer1::PluginTensorDesc const* outputDesc,
        void const* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;
    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override;

private:
    enum class Extent
    {
        kMIN,
        kOPT,
        kMAX,
    };

    // What a tactic launches for a shape, and in how much workspace.
    struct Choice
    {
        int32_t tactic;
        size_t workspaceBytes;
    };

    // What enqueue launches, and the tensors for which that was found: the inputs, then the output.
    struct Launch
    {
        std::array<nvinfer1::PluginTensorDesc, kMaxInputs + 1> tensors{};
        std::optional<Call> call; // none if X has no elements
        Choice choice{};
    };

    // Runs the body of a function that TensorRT calls, and reports exceptions.
    template <typename Result, typename Body>
    Result answer(char const* function, Result failure, Body const& body) const noexcept;

    void checkCounts(int32_t nbInputs, int32_t nbOutputs) const;

    // The call for one shape of a profile; none if X has no elements.
    std::optional<Call> callFor(
        Extent extent, nvinfer1::DynamicPluginTensorDesc const* in, nvinfer1::DynamicPluginTensorDesc const* out) const;

    // The tactics that can compute every shape of a profile and split the list, if they do, at its typical shape.
    Tactics tacticsFor(nvinfer1::DynamicPluginTensorDesc const* in, nvinfer1::DynamicPluginTensorDesc const* out) const;

    // The name of the tactic that is pinned for this GPU; empty if there is none.
    [[nodiscard]] std::string_view pinnedName() const;

    // Of these tactics the pinned one alone; all if none is pinned for this GPU, or one that is not among them.
    Tactics offered(Tactics tactics) const;

    // Throws Error if the tactic cannot compute the call.
    static Choice chosen(Call const& call, int32_t tactic);

    // What to launch for given tensors with the tactic that was set last. Throws Error if it cannot be launched.
    Launch launchFor(nvinfer1::PluginTensorDesc const* in, nvinfer1::PluginTensorDesc const* out) const;

    [[nodiscard]] bool isFor(
        Launch const& launch, nvinfer1::PluginTensorDesc const* in, nvinfer1::PluginTensorDesc const* out) const;

    Operator const& mOperator;
    Host const* mHost;
    Settings mSettings;
    std::string mTimingCacheId;
    std::string mMetadata;
    Tactics mTactics;         // set by the last configurePlugin
    int32_t mTactic{0};       // TensorRT's number, 0 for the default
    bool mIsTacticSet{false}; // since the last configurePlugin, before which a tactic says nothing of the workspace
    bool mHasWarned{false};
    nvinfer1::IErrorRecorder* mRecorder{nullptr};

    // TensorRT sets shapes and tactics in any order, and often the same ones again. enqueue is told the shapes, so it
    // finds anew what to launch whenever this is of another tactic or other shapes.
    std::optional<Launch> mLaunch;

    // The result of getFieldsToSerialize, which points into this object.
    std::vector<nvinfer1::PluginField> mFields;
    nvinfer1::PluginFieldCollection mCollection{};
};

} // namespace trtkp::glue

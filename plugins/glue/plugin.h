// An operator as a TensorRT plugin (IPluginV3), with core, build and runtime interfaces in one object.
#pragma once

#include "family.h"
#include "settings.h"

#include <memory>
#include <string>
#include <vector>

namespace trtkp::glue
{

class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuild,
                     public nvinfer1::IPluginV3OneRuntime
{
public:
    Plugin(Operator const& op, Settings const& settings);

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

    // Runs the body of a function that TensorRT calls, and reports exceptions.
    template <typename Result, typename Body>
    Result answer(char const* function, Result failure, Body const& body) const noexcept;

    void checkCounts(int32_t nbInputs, int32_t nbOutputs) const;

    // The call for one shape of a profile; null if X has no elements.
    std::shared_ptr<Call const> callFor(
        Extent extent, nvinfer1::DynamicPluginTensorDesc const* in, nvinfer1::DynamicPluginTensorDesc const* out) const;

    // The tactics that can compute every shape of a profile.
    std::vector<int32_t> tacticsFor(
        nvinfer1::DynamicPluginTensorDesc const* in, nvinfer1::DynamicPluginTensorDesc const* out) const;

    Operator const& mOperator;
    Settings mSettings;
    std::string mTimingCacheId;
    std::string mMetadata;
    std::vector<int32_t> mTactics; // set by the last configurePlugin
    int32_t mTactic{0};            // TensorRT's number, 0 for the default
    nvinfer1::IErrorRecorder* mRecorder{nullptr};

    // Set by the last onShapeChange.
    std::shared_ptr<Call const> mCall;
    bool mIsEmpty{false};
    int32_t mLaunchTactic{0};
    size_t mWorkspaceBytes{0};

    // The result of getFieldsToSerialize, which points into this object.
    std::vector<nvinfer1::PluginField> mFields;
    nvinfer1::PluginFieldCollection mCollection{};
};

} // namespace trtkp::glue

// The plugin creators, one for each operator.
#pragma once

#include "settings.h"

namespace trtkp::glue
{

class Creator final : public nvinfer1::IPluginCreatorV3One
{
public:
    explicit Creator(Operator const& op);

    nvinfer1::IPluginV3* createPlugin(nvinfer1::AsciiChar const* name, nvinfer1::PluginFieldCollection const* fields,
        nvinfer1::TensorRTPhase phase) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override;
    nvinfer1::AsciiChar const* getPluginName() const noexcept override;
    nvinfer1::AsciiChar const* getPluginVersion() const noexcept override;
    nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override;

private:
    Operator const& mOperator;
    std::vector<nvinfer1::PluginField> mFields;
    nvinfer1::PluginFieldCollection mCollection;
};

// All creators. They live as long as the library.
std::vector<nvinfer1::IPluginCreatorInterface*> const& creators();

} // namespace trtkp::glue

// The plugin creators, one for each operator.
#pragma once

#include "host.h"
#include "settings.h"

namespace trtkp::glue
{

class Creator final : public nvinfer1::IPluginCreatorV3One
{
public:
    // `host` is the TensorRT that the creator is for; null if it is not known.
    Creator(Operator const& op, Host const* host);

    nvinfer1::IPluginV3* createPlugin(nvinfer1::AsciiChar const* name, nvinfer1::PluginFieldCollection const* fields,
        nvinfer1::TensorRTPhase phase) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override;
    nvinfer1::AsciiChar const* getPluginName() const noexcept override;
    nvinfer1::AsciiChar const* getPluginVersion() const noexcept override;
    nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override;

private:
    Operator const& mOperator;
    Host const* mHost;
    std::vector<nvinfer1::PluginField> mFields;
    nvinfer1::PluginFieldCollection mCollection;
};

// All creators for a host, which may be null. They live as long as the library. Every host has creators of its own, so
// that its plugins know whom to log to.
std::vector<nvinfer1::IPluginCreatorInterface*> const& creatorsFor(Host const* host);

} // namespace trtkp::glue

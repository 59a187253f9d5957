#include "creator.h"

#include "error.h"
#include "names.h"
#include "plugin.h"

#include <memory>

namespace trtkp::glue
{

using nvinfer1::TensorRTPhase;

Creator::Creator(Operator const& op)
    : mOperator{op}
    , mCollection{}
{
    for (FieldSpec const& spec : fieldSpecs(op, TensorRTPhase::kBUILD))
    {
        mFields.emplace_back(spec.name, nullptr, spec.type, spec.length);
    }
    mCollection = {static_cast<int32_t>(mFields.size()), mFields.data()};
}

nvinfer1::IPluginV3* Creator::createPlugin(
    nvinfer1::AsciiChar const* name, nvinfer1::PluginFieldCollection const* fields, TensorRTPhase phase) noexcept
{
    return guarded<nvinfer1::IPluginV3*>(mOperator.name.c_str(), name == nullptr ? "" : name, nullptr, nullptr,
        [&]
        {
            require(phase == TensorRTPhase::kBUILD || phase == TensorRTPhase::kRUNTIME, "phase ",
                static_cast<int32_t>(phase), " is none");
            Settings const settings = readSettings(mOperator, fields, phase);
            auto plugin = std::make_unique<Plugin>(mOperator, settings);
            log(Severity::kVERBOSE, mOperator.name + ' ' + (name == nullptr ? "" : name) + ": " + describe(settings));
            return plugin.release();
        });
}

nvinfer1::PluginFieldCollection const* Creator::getFieldNames() noexcept
{
    return &mCollection;
}

nvinfer1::AsciiChar const* Creator::getPluginName() const noexcept
{
    return mOperator.name.c_str();
}

nvinfer1::AsciiChar const* Creator::getPluginVersion() const noexcept
{
    return kVersion;
}

nvinfer1::AsciiChar const* Creator::getPluginNamespace() const noexcept
{
    return kNamespace;
}

std::vector<nvinfer1::IPluginCreatorInterface*> const& creators()
{
    // Never destroyed, for the same reason as operators().
    static auto const* const all = []
    {
        auto* const made = new std::vector<nvinfer1::IPluginCreatorInterface*>;
        for (Operator const& op : operators())
        {
            made->push_back(new Creator{op});
        }
        return made;
    }();
    return *all;
}

} // namespace trtkp::glue

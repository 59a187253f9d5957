#include "creator.h"

#include "error.h"
#include "names.h"
#include "plugin.h"

#include <map>
#include <memory>
#include <mutex>

namespace trtkp::glue
{

using nvinfer1::TensorRTPhase;

Creator::Creator(Operator const& op, Host const* host)
    : mOperator{op}
    , mHost{host}
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
    return guarded<nvinfer1::IPluginV3*>(mHost, mOperator.name.c_str(), name == nullptr ? "" : name, nullptr, nullptr,
        [&]
        {
            require(phase == TensorRTPhase::kBUILD || phase == TensorRTPhase::kRUNTIME, "phase ",
                static_cast<int32_t>(phase), " is none");
            Settings const settings = readSettings(mOperator, fields, phase);
            auto plugin = std::make_unique<Plugin>(mOperator, settings, mHost);
            log(mHost, Severity::kVERBOSE,
                mOperator.name + ' ' + (name == nullptr ? "" : name) + ": " + describe(settings));
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

std::vector<nvinfer1::IPluginCreatorInterface*> const& creatorsFor(Host const* host)
{
    // Never destroyed, for the same reason as operators().
    static auto* const all = new std::map<Host const*, std::vector<nvinfer1::IPluginCreatorInterface*>>;
    static auto* const mutex = new std::mutex;
    std::lock_guard const lock{*mutex};
    auto& made = (*all)[host];
    for (size_t i = made.size(); i < operators().size(); ++i)
    {
        made.push_back(new Creator{operators()[i], host});
    }
    return made;
}

} // namespace trtkp::glue

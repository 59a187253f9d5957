// A played TensorRT as a shared library, so that a process can have several. TRTKP_PLAYED_VERSION is its version, which
// stands before all that it prints.

#include "../../plugins/glue/entry.h"
#include "played_registry.h"

#include <dlfcn.h>

#define TRTKP_EXPORT extern "C" __attribute__((visibility("default")))

namespace
{

host::Finder10 gFinder10;
host::Finder11 gFinder11;

} // namespace

TRTKP_EXPORT void* getPluginRegistry()
{
    return host::isV10() ? static_cast<void*>(static_cast<trtkp::glue::v10::Registry*>(&host::gRegistry10))
                         : static_cast<trtkp::glue::v11::Registry*>(&host::gRegistry11);
}

TRTKP_EXPORT void* getLogger()
{
    return host::isV10() ? static_cast<void*>(static_cast<trtkp::glue::v10::Logger*>(&host::gLogger10))
                         : static_cast<trtkp::glue::v11::Logger*>(&host::gLogger11);
}

TRTKP_EXPORT int32_t getInferLibVersion()
{
    host::gName = std::to_string(host::gVersion) + ' ';
    return host::gVersion;
}

// What IPluginRegistry::loadLibrary does. Prints how many creators the registry has then.
TRTKP_EXPORT void playLoad(char const* path)
{
    host::gName = std::to_string(host::gVersion) + ' ';
    void* const library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    host::expect(library != nullptr, "no plugin library");
    auto* const useFinder = reinterpret_cast<void (*)(void*)>(dlsym(library, "setLoggerFinder"));
    useFinder(host::isV10() ? static_cast<void*>(static_cast<trtkp::glue::v10::LoggerFinder*>(&gFinder10))
                            : static_cast<trtkp::glue::v11::LoggerFinder*>(&gFinder11));
    auto* const getThem
        = reinterpret_cast<nvinfer1::IPluginCreatorInterface* const* (*)(int32_t&)>(dlsym(library, "getCreators"));
    int32_t count = 0;
    auto* const* const creators = getThem(count);
    for (int32_t i = 0; i < count; ++i)
    {
        host::gCreators.add(*creators[i], "trtkp");
    }
    std::printf("%screators %zu\n", host::gName.c_str(), host::gCreators.all.size());
    std::fflush(stdout);
}

// Creates a plugin from nothing, which is refused with a message.
TRTKP_EXPORT void playCreate()
{
    auto* const creator = static_cast<nvinfer1::IPluginCreatorV3One*>(host::gCreators.find("StripeConv", "1", "trtkp"));
    host::expect(creator != nullptr, "no creator");
    host::expect(
        creator->createPlugin("node", nullptr, nvinfer1::TensorRTPhase::kBUILD) == nullptr, "a plugin from nothing");
    std::fflush(stdout);
}

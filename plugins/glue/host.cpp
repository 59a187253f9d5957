#include "host.h"

#include "names.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <dlfcn.h>
#include <link.h>

namespace trtkp::glue
{
namespace
{

// getInferLibVersion returns 10xxxx and 11xxxx for TensorRT. TensorRT-RTX has its own versions, which begin at 1.
int32_t constexpr kFirstTensorRt = 100000;
int32_t constexpr kFirstV11 = 110000;

std::atomic<void*> gFinder{nullptr};

int collectName(dl_phdr_info* info, size_t, void* names)
{
    static_cast<std::vector<std::string>*>(names)->emplace_back(info->dlpi_name == nullptr ? "" : info->dlpi_name);
    return 0;
}

template <typename Finder>
auto* find(void* finder)
{
    return static_cast<Finder*>(finder)->findLogger();
}

template <typename Logger>
bool logTo(Logger* logger, Severity severity, char const* message)
{
    if (logger == nullptr)
    {
        return false;
    }
    logger->log(severity, message);
    return true;
}

template <typename Registry>
bool registerAll(Registry& registry, nvinfer1::IPluginCreatorInterface* const* creators, int32_t count)
{
    bool all = true;
    for (int32_t i = 0; i < count; ++i)
    {
        auto const* const creator = static_cast<nvinfer1::IPluginCreatorV3One*>(creators[i]);
        char const* const name = creator->getPluginName();
        // Ask first: TensorRT logs an error if a creator is registered twice.
        bool const isThere = registry.getCreator(name, kVersion, kNamespace) != nullptr;
        all = (isThere || registry.registerCreator(*creators[i], kNamespace)
                  || registry.getCreator(name, kVersion, kNamespace) != nullptr)
            && all;
    }
    return all;
}

} // namespace

bool Host::isRtx() const
{
    return version < kFirstTensorRt;
}

bool Host::isV11() const
{
    return isRtx() || version >= kFirstV11;
}

std::vector<Host> hosts()
{
    // dl_iterate_phdr holds the loader's lock, so dlopen must not be called from its callback.
    std::vector<std::string> names;
    dl_iterate_phdr(collectName, &names);
    std::vector<Host> found;
    for (std::string const& name : names)
    {
        void* const object = dlopen(name.empty() ? nullptr : name.c_str(), RTLD_LAZY | RTLD_NOLOAD);
        if (object == nullptr)
        {
            continue;
        }
        Host host{};
        host.getPluginRegistry = reinterpret_cast<void* (*)()>(dlsym(object, "getPluginRegistry"));
        host.getLogger = reinterpret_cast<void* (*)()>(dlsym(object, "getLogger"));
        auto* const version = reinterpret_cast<int32_t (*)()>(dlsym(object, "getInferLibVersion"));
        // dlsym also finds symbols of the libraries that an object is linked to, so a registry may be found twice.
        bool const isNew = std::none_of(found.begin(), found.end(),
            [&](Host const& other) { return other.getPluginRegistry == host.getPluginRegistry; });
        if (host.getPluginRegistry != nullptr && host.getLogger != nullptr && version != nullptr && isNew)
        {
            host.version = version();
            found.push_back(host);
        }
        dlclose(object);
    }
    return found;
}

void useLoggerFinder(void* finder)
{
    gFinder = finder;
}

nvinfer1::IErrorRecorder* registryRecorder() noexcept
{
    try
    {
        for (Host const& host : hosts())
        {
            void* const registry = host.getPluginRegistry();
            if (registry != nullptr)
            {
                return host.isV11() ? static_cast<v11::Registry*>(registry)->getErrorRecorder()
                                    : static_cast<v10::Registry*>(registry)->getErrorRecorder();
            }
        }
    }
    catch (...)
    {
    }
    return nullptr;
}

void log(Severity severity, std::string const& message) noexcept
{
    std::string line;
    try
    {
        line = "[trtkp] " + message;
        void* const finder = gFinder;
        for (Host const& host : hosts())
        {
            bool const isV11 = host.isV11();
            void* logger = nullptr;
            if (finder != nullptr)
            {
                logger = isV11 ? static_cast<void*>(find<v11::LoggerFinder>(finder)) : find<v10::LoggerFinder>(finder);
            }
            logger = logger == nullptr ? host.getLogger() : logger;
            if (isV11 ? logTo(static_cast<v11::Logger*>(logger), severity, line.c_str())
                      : logTo(static_cast<v10::Logger*>(logger), severity, line.c_str()))
            {
                return;
            }
        }
    }
    catch (...)
    {
    }
    std::fprintf(stderr, "%s\n", line.c_str());
}

int32_t registerCreators(nvinfer1::IPluginCreatorInterface* const* creators, int32_t count)
{
    int32_t registries = 0;
    bool all = true;
    for (Host const& host : hosts())
    {
        if (host.isRtx())
        {
            log(Severity::kWARNING, "plugins are not registered with TensorRT-RTX, which cannot run them");
            continue;
        }
        void* const registry = host.getPluginRegistry();
        if (registry == nullptr)
        {
            continue;
        }
        all = (host.isV11() ? registerAll(*static_cast<v11::Registry*>(registry), creators, count)
                            : registerAll(*static_cast<v10::Registry*>(registry), creators, count))
            && all;
        ++registries;
    }
    return all ? registries : -1;
}

} // namespace trtkp::glue

#include "host.h"

#include "names.h"

#include <algorithm>
#include <cstdio>
#include <dlfcn.h>
#include <link.h>
#include <mutex>

namespace trtkp::glue
{
namespace
{

// getInferLibVersion returns major * 10000 + minor * 100 + patch. TensorRT-RTX has versions of its own; its layouts are
// known from 1.7 on.
int32_t constexpr kFirstRtx = 10700;
int32_t constexpr kPastRtx = 20000;
int32_t constexpr kFirstV10 = 100000;
int32_t constexpr kFirstV11 = 110000;
int32_t constexpr kPastV11 = 120000;

int collectName(dl_phdr_info* info, size_t, void* names)
{
    static_cast<std::vector<std::string>*>(names)->emplace_back(info->dlpi_name == nullptr ? "" : info->dlpi_name);
    return 0;
}

// The logger of the current call by a host's finder, or else its global one.
template <typename Logger, typename Finder>
bool logTo(void* finder, void* (*getLogger)(), Severity severity, char const* message)
{
    Logger* logger = finder == nullptr ? nullptr : static_cast<Finder*>(finder)->findLogger();
    logger = logger == nullptr ? static_cast<Logger*>(getLogger()) : logger;
    if (logger != nullptr)
    {
        logger->log(severity, message);
    }
    return logger != nullptr;
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

// Where the object that contains an address is loaded; null if there is none.
void const* baseOf(void const* address)
{
    Dl_info info{};
    return dladdr(address, &info) == 0 ? nullptr : info.dli_fbase;
}

// Guards the list of hosts and what changes in them.
std::mutex gMutex;

// The one object that stands for a host.
Host* interned(Host const& host)
{
    std::lock_guard const lock{gMutex};
    static auto* const all = new std::vector<Host*>; // never destroyed: plugins may outlive the library's destructors
    auto const it = std::find_if(all->begin(), all->end(), [&](Host const* known) { return known->is(host); });
    if (it != all->end())
    {
        return *it;
    }
    if (!host.isKnown())
    {
        std::fprintf(stderr,
            "[trtkp] a TensorRT of version number %d is loaded, which this library does not know: it gets no plugins "
            "(known are TensorRT 10 and 11, and TensorRT-RTX 1.7 and later)\n",
            host.version());
    }
    all->push_back(new Host{host});
    return all->back();
}

} // namespace

Host::Host(void* (*getPluginRegistry)(), void* (*getLogger)(), int32_t version)
    : mGetPluginRegistry{getPluginRegistry}
    , mGetLogger{getLogger}
    , mVersion{version}
{
}

int32_t Host::version() const
{
    return mVersion;
}

bool Host::isRtx() const
{
    return mVersion < kPastRtx;
}

bool Host::isKnown() const
{
    return (mVersion >= kFirstRtx && mVersion < kPastRtx) || (mVersion >= kFirstV10 && mVersion < kPastV11);
}

bool Host::isV11() const
{
    return isRtx() || mVersion >= kFirstV11;
}

void* Host::registry() const
{
    return mGetPluginRegistry();
}

bool Host::is(Host const& other) const
{
    return mGetPluginRegistry == other.mGetPluginRegistry && mVersion == other.mVersion;
}

bool Host::contains(void const* address) const
{
    return baseOf(address) != nullptr && baseOf(address) == baseOf(reinterpret_cast<void const*>(mGetPluginRegistry));
}

void Host::useFinder(void* finder)
{
    std::lock_guard const lock{gMutex};
    mFinder = finder;
}

bool Host::log(Severity severity, char const* message) const
{
    void* finder = nullptr;
    {
        std::lock_guard const lock{gMutex};
        finder = mFinder;
    }
    return isV11() ? logTo<v11::Logger, v11::LoggerFinder>(finder, mGetLogger, severity, message)
                   : logTo<v10::Logger, v10::LoggerFinder>(finder, mGetLogger, severity, message);
}

nvinfer1::IErrorRecorder* Host::recorder() const
{
    void* const found = registry();
    return found == nullptr ? nullptr
        : isV11()           ? static_cast<v11::Registry*>(found)->getErrorRecorder()
                            : static_cast<v10::Registry*>(found)->getErrorRecorder();
}

bool Host::registerCreators(nvinfer1::IPluginCreatorInterface* const* creators, int32_t count) const
{
    void* const found = registry();
    return isV11() ? registerAll(*static_cast<v11::Registry*>(found), creators, count)
                   : registerAll(*static_cast<v10::Registry*>(found), creators, count);
}

std::vector<Host*> hosts()
{
    // dl_iterate_phdr holds the loader's lock, so dlopen must not be called from its callback.
    std::vector<std::string> names;
    dl_iterate_phdr(collectName, &names);
    std::vector<Host*> found;
    for (std::string const& name : names)
    {
        void* const object = dlopen(name.empty() ? nullptr : name.c_str(), RTLD_LAZY | RTLD_NOLOAD);
        if (object == nullptr)
        {
            continue;
        }
        auto* const registry = reinterpret_cast<void* (*)()>(dlsym(object, "getPluginRegistry"));
        auto* const logger = reinterpret_cast<void* (*)()>(dlsym(object, "getLogger"));
        auto* const version = reinterpret_cast<int32_t (*)()>(dlsym(object, "getInferLibVersion"));
        if (registry != nullptr && logger != nullptr && version != nullptr)
        {
            // dlsym also finds symbols of the libraries that an object is linked to, so a host may be found twice.
            Host* const host = interned({registry, logger, version()});
            if (std::find(found.begin(), found.end(), host) == found.end())
            {
                found.push_back(host);
            }
        }
        dlclose(object);
    }
    return found;
}

Host* caller(void const* returnAddress)
{
    std::vector<Host*> const all = hosts();
    auto const it
        = std::find_if(all.begin(), all.end(), [&](Host const* host) { return host->contains(returnAddress); });
    return it != all.end() ? *it : all.size() == 1 ? all.front() : nullptr;
}

void log(Host const* host, Severity severity, std::string const& message) noexcept
{
    std::string line;
    try
    {
        line = "[trtkp] " + message;
        if (host != nullptr && host->isKnown() && host->log(severity, line.c_str()))
        {
            return;
        }
    }
    catch (...)
    {
    }
    std::fprintf(stderr, "%s\n", line.c_str());
}

nvinfer1::IErrorRecorder* registryRecorder(Host const* host) noexcept
{
    try
    {
        return host == nullptr || !host->isKnown() ? nullptr : host->recorder();
    }
    catch (...)
    {
        return nullptr;
    }
}

} // namespace trtkp::glue

// The registry, logger and version of a TensorRT that is not there; plugins find them by the names of its functions.

#pragma once

#include "../../plugins/glue/host.h"
#include "check.h"
#include "played_context.h"

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

namespace host
{

namespace glue = trtkp::glue;

#ifndef TRTKP_PLAYED_VERSION
#define TRTKP_PLAYED_VERSION 110000
#endif

inline int32_t gVersion = TRTKP_PLAYED_VERSION;

// Stands before what its loggers, finders and recorder print, where several TensorRTs are played.
inline std::string gName;

inline bool isV10()
{
    return gVersion >= 100000 && gVersion < 110000;
}

template <typename Base>
struct PlayedLogger : Base
{
    void log(glue::Severity severity, char const* message) noexcept override
    {
        std::printf("%slog %d %s\n", gName.c_str(), static_cast<int>(severity), message);
    }
};

struct Logger11 : PlayedLogger<glue::v11::Logger>
{
    InterfaceInfo getInterfaceInfo() const noexcept override
    {
        return {"ILogger", 1, 0};
    }
};

inline PlayedLogger<glue::v10::Logger> gLogger10;
inline Logger11 gLogger11;

struct Finder10 : glue::v10::LoggerFinder
{
    glue::v10::Logger* findLogger() override
    {
        std::printf("%sfinder 10\n", gName.c_str());
        return &gLogger10;
    }
};

struct Finder11 : glue::v11::LoggerFinder
{
    InterfaceInfo getInterfaceInfo() const noexcept override
    {
        return {"ILoggerFinder", 1, 0};
    }
    glue::v11::Logger* findLogger() override
    {
        std::printf("%sfinder 11\n", gName.c_str());
        return &gLogger11;
    }
};

// What both registries do; a creator that is there is refused, as TensorRT refuses it.
struct Creators
{
    std::vector<IPluginCreatorInterface*> all;
    int32_t refused{0};

    IPluginCreatorInterface* find(char const* name, char const* version, char const* space)
    {
        for (auto* const each : all)
        {
            auto* const creator = static_cast<IPluginCreatorV3One*>(each);
            if (std::strcmp(creator->getPluginName(), name) == 0
                && std::strcmp(creator->getPluginVersion(), version) == 0
                && std::strcmp(creator->getPluginNamespace(), space) == 0)
            {
                return each;
            }
        }
        return nullptr;
    }

    bool add(IPluginCreatorInterface& creator, char const* space)
    {
        auto& typed = static_cast<IPluginCreatorV3One&>(creator);
        bool const isNew = find(typed.getPluginName(), typed.getPluginVersion(), space) == nullptr;
        refused += isNew ? 0 : 1;
        if (isNew)
        {
            all.push_back(&creator);
        }
        return isNew;
    }
};

inline Creators gCreators;

inline Recorder gRegistryRecorder{gName};

template <typename Base>
struct PlayedRegistry : Base
{
    void setErrorRecorder(IErrorRecorder*) noexcept override {}
    IErrorRecorder* getErrorRecorder() const noexcept override
    {
        return &gRegistryRecorder;
    }
    bool isParentSearchEnabled() const override
    {
        return false;
    }
    void setParentSearchEnabled(bool) override {}
    void* loadLibrary(char const*) noexcept override
    {
        return nullptr;
    }
    void deregisterLibrary(void*) noexcept override {}
    bool registerCreator(IPluginCreatorInterface& creator, char const* space) noexcept override
    {
        return gCreators.add(creator, space);
    }
    IPluginCreatorInterface* const* getAllCreators(int32_t* count) const noexcept override
    {
        *count = static_cast<int32_t>(gCreators.all.size());
        return gCreators.all.data();
    }
    IPluginCreatorInterface* getCreator(char const* name, char const* version, char const* space) noexcept override
    {
        return gCreators.find(name, version, space);
    }
};

struct Registry10 : PlayedRegistry<glue::v10::Registry>
{
    bool registerOldCreator(void*, char const*) noexcept override
    {
        die("registerOldCreator");
    }
    void* getOldCreators(int32_t*) const noexcept override
    {
        die("getOldCreators");
    }
    void* getOldCreator(char const*, char const*, char const*) noexcept override
    {
        die("getOldCreator");
    }
    bool deregisterOldCreator(void*) noexcept override
    {
        die("deregisterOldCreator");
    }
};

inline Registry10 gRegistry10;

inline PlayedRegistry<glue::v11::Registry> gRegistry11;

} // namespace host

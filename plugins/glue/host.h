// The TensorRT libraries that the process has loaded: their loggers and plugin registries. Nothing of TensorRT is
// linked.
//
// Three interfaces that TensorRT implements have different virtual tables in versions 10 and 11. One build of this
// library serves both, and a process may have loaded both, so every object of a host is called by the version of that
// host. The namespaces v10 and v11 have their layouts, up to the last function that is called here. Of a version that
// is not known, nothing is called.
#pragma once

#include "tensorrt.h"

#include <string>
#include <vector>

namespace trtkp::glue
{

enum class Severity : int32_t
{
    kINTERNAL_ERROR = 0,
    kERROR = 1,
    kWARNING = 2,
    kINFO = 3,
    kVERBOSE = 4,
};

namespace v10
{

class Logger
{
public:
    virtual void log(Severity severity, char const* message) noexcept = 0;

protected:
    virtual ~Logger() = default;
};

class LoggerFinder
{
public:
    virtual Logger* findLogger() = 0;

protected:
    virtual ~LoggerFinder() = default;
};

// registerOldCreator, getOldCreators, getOldCreator and deregisterOldCreator deal with creators of version 2, which are
// not used here. They only keep the layout.
class Registry
{
public:
    virtual bool registerOldCreator(void* creator, char const* space) noexcept = 0;
    virtual void* getOldCreators(int32_t* count) const noexcept = 0;
    virtual void* getOldCreator(char const* name, char const* version, char const* space) noexcept = 0;

protected:
    virtual ~Registry() noexcept = default;

public:
    virtual void setErrorRecorder(nvinfer1::IErrorRecorder* recorder) noexcept = 0;
    virtual nvinfer1::IErrorRecorder* getErrorRecorder() const noexcept = 0;
    virtual bool deregisterOldCreator(void* creator) noexcept = 0;
    virtual bool isParentSearchEnabled() const = 0;
    virtual void setParentSearchEnabled(bool enabled) = 0;
    virtual void* loadLibrary(char const* path) noexcept = 0;
    virtual void deregisterLibrary(void* library) noexcept = 0;
    virtual bool registerCreator(nvinfer1::IPluginCreatorInterface& creator, char const* space) noexcept = 0;
    virtual nvinfer1::IPluginCreatorInterface* const* getAllCreators(int32_t* count) const noexcept = 0;
    virtual nvinfer1::IPluginCreatorInterface* getCreator(
        char const* name, char const* version, char const* space) noexcept = 0;
};

} // namespace v10

namespace v11
{

class Logger : public nvinfer1::IVersionedInterface
{
public:
    virtual void log(Severity severity, char const* message) noexcept = 0;
};

class LoggerFinder : public nvinfer1::IVersionedInterface
{
public:
    virtual Logger* findLogger() = 0;
};

class Registry
{
protected:
    virtual ~Registry() noexcept = default;

public:
    virtual void setErrorRecorder(nvinfer1::IErrorRecorder* recorder) noexcept = 0;
    virtual nvinfer1::IErrorRecorder* getErrorRecorder() const noexcept = 0;
    virtual bool isParentSearchEnabled() const = 0;
    virtual void setParentSearchEnabled(bool enabled) = 0;
    virtual void* loadLibrary(char const* path) noexcept = 0;
    virtual void deregisterLibrary(void* library) noexcept = 0;
    virtual bool registerCreator(nvinfer1::IPluginCreatorInterface& creator, char const* space) noexcept = 0;
    virtual nvinfer1::IPluginCreatorInterface* const* getAllCreators(int32_t* count) const noexcept = 0;
    virtual nvinfer1::IPluginCreatorInterface* getCreator(
        char const* name, char const* version, char const* space) noexcept = 0;
};

} // namespace v11

// A loaded library with a plugin registry. Each has one object, which is never destroyed.
class Host
{
public:
    // The functions that it exports, and what its getInferLibVersion returns.
    Host(void* (*getPluginRegistry)(), void* (*getLogger)(), int32_t version);

    [[nodiscard]] int32_t version() const;

    [[nodiscard]] bool isRtx() const;

    // Whether the layouts of this version are known.
    [[nodiscard]] bool isKnown() const;

    // Whether the interfaces above have their v11 layout. TensorRT-RTX has it too.
    [[nodiscard]] bool isV11() const;

    // Its registry in that layout; null if it has none.
    [[nodiscard]] void* registry() const;

    // Whether the object stands for a library with these functions and this version.
    [[nodiscard]] bool is(Host const& other) const;

    // Whether the function at this address is part of the library.
    [[nodiscard]] bool contains(void const* address) const;

    // Stores the argument of a call of setLoggerFinder by this host.
    void useFinder(void* finder);

    // Logs to the logger of the current call. Returns false if there is none.
    bool log(Severity severity, char const* message) const;

    // The error recorder of the registry; null if it has none.
    [[nodiscard]] nvinfer1::IErrorRecorder* recorder() const;

    // Registers creators. One that is registered already counts. Returns false if the registry refused one.
    [[nodiscard]] bool registerCreators(nvinfer1::IPluginCreatorInterface* const* creators, int32_t count) const;

private:
    void* (*mGetPluginRegistry)();
    void* (*mGetLogger)();
    int32_t mVersion; // major * 10000 + minor * 100 + patch
    void* mFinder{nullptr};
};

// All hosts of the process, each once. Python, for example, loads TensorRT outside the global scope, so every loaded
// object is asked. The first time that a host of an unknown version is found, a line on stderr says so.
std::vector<Host*> hosts();

// The host that a function was called by, from the address to which the function returns. If that is in none of the
// hosts, it is the only one, or null if there are several: then no layout is certain.
Host* caller(void const* returnAddress);

// Logs to a host, or to stderr if it is null, of an unknown version, or has no logger. Never throws.
void log(Host const* host, Severity severity, std::string const& message) noexcept;

// The error recorder of a host's registry; null if there is none or the host is null.
nvinfer1::IErrorRecorder* registryRecorder(Host const* host) noexcept;

} // namespace trtkp::glue

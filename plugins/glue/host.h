// The TensorRT that the process has loaded: its logger and its plugin registry. Nothing of TensorRT is linked.
//
// Three interfaces that TensorRT implements have different virtual tables in versions 10 and 11. One build of this
// library serves both, so it calls them by the version that the process has loaded. The namespaces v10 and v11 have
// their layouts, up to the last function that is called here.
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

// A loaded library with a plugin registry.
struct Host
{
    void* (*getPluginRegistry)();
    void* (*getLogger)();
    int32_t version; // major * 10000 + minor * 100 + patch

    [[nodiscard]] bool isRtx() const;

    // Whether the interfaces above have their v11 layout. TensorRT-RTX has it too.
    [[nodiscard]] bool isV11() const;
};

// All hosts of the process, each once. Python, for example, loads TensorRT outside the global scope, so every loaded
// object is asked.
std::vector<Host> hosts();

// Stores the argument of setLoggerFinder. It has the layout of the TensorRT that the process has loaded.
void useLoggerFinder(void* finder);

// The error recorder of the process's plugin registry; null if it has none.
nvinfer1::IErrorRecorder* registryRecorder() noexcept;

// Logs to the logger that TensorRT uses for the current call, or to stderr if there is none. Never throws.
void log(Severity severity, std::string const& message) noexcept;

// Registers creators with every TensorRT of the process. TensorRT-RTX is left out, because it aborts when a network
// uses a plugin. A creator that is registered already counts. Returns the number of registries, or -1 if one refused.
int32_t registerCreators(nvinfer1::IPluginCreatorInterface* const* creators, int32_t count);

} // namespace trtkp::glue

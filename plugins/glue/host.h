// TensorRT as the process has loaded it: its logger and its plugin registry. Nothing of it is linked.
//
// Three interfaces that TensorRT implements have other virtual tables in version 11 than in version 10, so one library
// for both calls them by the version that the process has. V10 and V11 are their layouts up to what is called here.
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

// Creators of version 2, which the first three and deregisterOldCreator deal in, are nobody's here.
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

    // Whether the interfaces above have their v11 layout, which TensorRT-RTX has, too.
    [[nodiscard]] bool isV11() const;
};

// Those of the process, each once. Under Python, say, they are in no global scope, so every loaded object is asked.
std::vector<Host> hosts();

// setLoggerFinder's argument, of the process's layout.
void useLoggerFinder(void* finder);

// The error recorder of the process's plugin registry; null where it has none.
nvinfer1::IErrorRecorder* registryRecorder() noexcept;

// To the logger that TensorRT has for the call at hand, to stderr where there is none. Never throws.
void log(Severity severity, std::string const& message) noexcept;

// Registers creators with every TensorRT of the process, but with no TensorRT-RTX, which aborts when a network takes a
// plugin. A creator that is there already counts. Returns the number of registries, or -1 where one has refused.
int32_t registerCreators(nvinfer1::IPluginCreatorInterface* const* creators, int32_t count);

} // namespace trtkp::glue

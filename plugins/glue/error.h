// Errors of plugins: exceptions inside the library, which `guarded` turns into messages at its edge.
#pragma once

#include "host.h"

#include <sstream>
#include <stdexcept>
#include <string>

namespace trtkp::glue
{

class Error : public std::runtime_error
{
    using std::runtime_error::runtime_error;
};

template <typename... Parts>
[[noreturn]] void fail(Parts const&... parts)
{
    std::ostringstream message;
    (message << ... << parts);
    throw Error{message.str()};
}

template <typename... Parts>
void require(bool condition, Parts const&... parts)
{
    if (!condition)
    {
        fail(parts...);
    }
}

// Runs the body of a function that a host calls. An exception is logged there as "WHO WHERE: MESSAGE" and reported to
// the recorder, or to that of the host's registry if there is none. The function then returns `failure`.
template <typename Result, typename Body>
Result guarded(Host const* host, char const* who, char const* where, nvinfer1::IErrorRecorder* recorder, Result failure,
    Body const& body) noexcept
{
    try
    {
        return body();
    }
    catch (std::exception const& error)
    {
        try
        {
            std::string const message = std::string{who} + ' ' + where + ": " + error.what();
            log(host, Severity::kERROR, message);
            nvinfer1::IErrorRecorder* const told = recorder == nullptr ? registryRecorder(host) : recorder;
            if (told != nullptr)
            {
                told->reportError(nvinfer1::ErrorCode::kINVALID_ARGUMENT, message.c_str());
            }
        }
        catch (...)
        {
        }
    }
    catch (...)
    {
    }
    return failure;
}

} // namespace trtkp::glue

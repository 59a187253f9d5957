// The exception that carries a message to the edge of the library, and the last message of each thread.
#pragma once

#include "trtkp.h"

#include <exception>
#include <sstream>
#include <string>

namespace trtkp::capi
{

class Error : public std::exception
{
public:
    Error(trtkpStatus status, std::string message)
        : mStatus{status}
        , mMessage{std::move(message)}
    {
    }

    [[nodiscard]] trtkpStatus status() const noexcept
    {
        return mStatus;
    }

    [[nodiscard]] char const* what() const noexcept override
    {
        return mMessage.c_str();
    }

private:
    trtkpStatus mStatus;
    std::string mMessage;
};

template <typename... Parts>
[[noreturn]] void fail(trtkpStatus status, Parts const&... parts)
{
    std::ostringstream message;
    (message << ... << parts);
    throw Error{status, message.str()};
}

template <typename... Parts>
void require(bool condition, Parts const&... parts)
{
    if (!condition)
    {
        fail(TRTKP_INVALID_ARGUMENT, parts...);
    }
}

// Stores a message for trtkpLastError. It is cut off if it is too long.
void setLastError(char const* message) noexcept;

// Runs the body of an interface function, and turns exceptions into a status. No exception leaves the library.
template <typename Body>
trtkpStatus guarded(Body const& body) noexcept
{
    try
    {
        body();
        return TRTKP_OK;
    }
    catch (Error const& error)
    {
        setLastError(error.what());
        return error.status();
    }
    catch (std::exception const& error)
    {
        setLastError(error.what());
        return TRTKP_INVALID_ARGUMENT;
    }
}

} // namespace trtkp::capi

// What the host does when a plugin breaks its contract: says so, and ends.

#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>

namespace host
{

int constexpr kFailureStatus = 70;

[[noreturn]] inline void die(std::string const& what)
{
    std::printf("host: %s\n", what.c_str());
    std::exit(kFailureStatus);
}

inline void expect(bool condition, std::string const& what)
{
    if (!condition)
    {
        die(what);
    }
}

} // namespace host

// What launchers that launch nothing were asked for.

#pragma once

namespace host
{

struct StubLaunch
{
    char const* launcher;
    int splits;
};

// The last launch, of the kernel that computes the layer.
extern StubLaunch gLaunch;

} // namespace host

// What launchers that launch nothing were asked for.

#pragma once

namespace host
{

struct StubLaunch
{
    char const* launcher;
    int splits;
};

// The last launch by this thread, of the kernel that computes the layer.
extern thread_local StubLaunch gLaunch;

} // namespace host

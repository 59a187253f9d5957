// Launchers that launch nothing and remember what they were asked for, so that a program can time the host's part.

#include "launch_stubs.h"

#include "../../plugins/kernels/launch/launch.h"

namespace host
{

thread_local StubLaunch gLaunch;

} // namespace host

namespace trtkp
{

#define TRTKP_STUB(name)                                                                                               \
    cudaError_t name(ConvProblem const& problem, DataType, cudaStream_t)                                               \
    {                                                                                                                  \
        host::gLaunch = {#name, problem.splits};                                                                       \
        return cudaSuccess;                                                                                            \
    }

#define TRTKP_DYNAMIC_STUB(name)                                                                                       \
    cudaError_t name(DynamicProblem const& problem, DataType, cudaStream_t)                                            \
    {                                                                                                                  \
        host::gLaunch = {#name, problem.conv.splits};                                                                  \
        return cudaSuccess;                                                                                            \
    }

TRTKP_STUB(launchReference)
TRTKP_STUB(launchMma128x128)
TRTKP_STUB(launchMma128x64)
TRTKP_STUB(launchMma64x64)
TRTKP_STUB(launchMma64x32)
TRTKP_STUB(launchMma128x128K64)
TRTKP_STUB(launchMma128x64K64)
TRTKP_STUB(launchMma64x64K64)
TRTKP_STUB(launchMma128x32K64)
TRTKP_STUB(launchTf32At128x64)
TRTKP_STUB(launchTf32At64x64)
TRTKP_STUB(launchSimt128x64)
TRTKP_STUB(launchSimt64x32)
TRTKP_STUB(launchSingle128x64)
TRTKP_STUB(launchSingle128x32)
TRTKP_STUB(launchSingle128x16)
TRTKP_STUB(launchSingleTf32At128x64)
TRTKP_STUB(launchSingleSimt64x32)
TRTKP_STUB(launchDirect)
TRTKP_STUB(launchSparse128x128)
TRTKP_STUB(launchSparse128x64)
TRTKP_STUB(launchSparse64x64)
TRTKP_STUB(launchSparseSingles64x64)
TRTKP_STUB(launchSparseSingles64x128)
TRTKP_DYNAMIC_STUB(launchAggregate)
TRTKP_DYNAMIC_STUB(launchDynamicReference)
TRTKP_DYNAMIC_STUB(launchDynamic128x64)
TRTKP_DYNAMIC_STUB(launchDynamic64x64)

// The sums of a split, after the kernel that is remembered.
cudaError_t launchSplit(ConvProblem const&, DataType, cudaStream_t)
{
    return cudaSuccess;
}

bool directFits(ConvProblem const&, int32_t)
{
    return true;
}

int64_t directBlocks(ConvProblem const&)
{
    return 1;
}

} // namespace trtkp

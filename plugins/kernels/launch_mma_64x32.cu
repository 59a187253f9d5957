#include "launch_mma.cuh"

namespace trtkp
{

// Four warps; 24 KiB of stages, for filter groups of 32 and for the smallest layers.
cudaError_t launchMma64x32(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    return launchMma<MmaTile<64, 32, 32, 16, 5>>(problem, type, stream);
}

} // namespace trtkp

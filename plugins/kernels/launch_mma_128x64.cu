#include "launch_mma.cuh"

namespace trtkp
{

// Four warps; 48 KiB of stages, three blocks on an SM of sm_80.
cudaError_t launchMma128x64(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    return launchMma<MmaTile<128, 64, 64, 32, 3>>(problem, type, stream);
}

} // namespace trtkp

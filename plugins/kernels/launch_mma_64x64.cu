#include "launch_mma.cuh"

namespace trtkp
{

// Four warps; 32 KiB of stages, for layers with few pixels.
cudaError_t launchMma64x64(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    return launchMma<MmaTile<64, 64, 32, 32, 4>>(problem, type, stream);
}

} // namespace trtkp

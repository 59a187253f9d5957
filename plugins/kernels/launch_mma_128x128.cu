#include "launch_mma.cuh"

namespace trtkp
{

// Eight warps; 64 KiB of stages, so two blocks fill an SM of sm_80 (164 KiB).
cudaError_t launchMma128x128(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    return launchMma<MmaTile<128, 128, 64, 32, 2>>(problem, type, stream);
}

} // namespace trtkp

#include "launch_gemm.cuh"

namespace trtkp
{

// Four warps; 72 KiB of stages: two blocks on an SM of sm_80, three of sm_90.
cudaError_t launchGemm128x64(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    return launchGemm16<GemmTile<128, 64, 64, 32, 3, 2>, BlockLoader>(problem, type, stream);
}

} // namespace trtkp

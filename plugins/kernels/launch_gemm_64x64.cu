#include "launch_gemm.cuh"

namespace trtkp
{

// Four warps; 48 KiB of stages: three blocks on an SM of sm_80.
cudaError_t launchGemm64x64(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    return launchGemm16<GemmTile<64, 64, 32, 32, 3, 3>, BlockLoader>(problem, type, stream);
}

} // namespace trtkp

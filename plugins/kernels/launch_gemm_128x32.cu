#include "launch_gemm.cuh"

namespace trtkp
{

// Four warps; 60 KiB of stages: two blocks on an SM of sm_80. A warp has 16 rows: for filter groups of 16 and 32.
cudaError_t launchGemm128x32(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    return launchGemm16<GemmTile<128, 32, 64, 16, 3, 2>, BlockLoader>(problem, type, stream);
}

} // namespace trtkp

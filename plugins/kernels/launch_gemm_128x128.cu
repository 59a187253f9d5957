#include "launch_gemm.cuh"

namespace trtkp
{

// Eight warps; 64 KiB of stages: two blocks on an SM of sm_80. A step is long enough to hide the copies of the next.
cudaError_t launchGemm128x128(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    return launchGemm16<GemmTile<128, 128, 64, 32, 2, 2>, BlockLoader>(problem, type, stream);
}

} // namespace trtkp

#include "launch_gemm.cuh"

namespace trtkp
{

// Eight warps; 40 KiB of stages. A warp has 16 rows: for filter groups of 16 and 32.
cudaError_t launchSingle128x32(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    return launchGemm16<GemmTile<128, 32, 32, 16, 2, 2>, SingleLoader>(problem, type, stream);
}

} // namespace trtkp

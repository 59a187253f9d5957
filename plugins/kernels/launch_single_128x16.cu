#include "launch_gemm.cuh"

namespace trtkp
{

// Eight warps; 36 KiB of stages, for filter groups of up to 16.
cudaError_t launchSingle128x16(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    return launchGemm16<GemmTile<128, 16, 16, 16, 2, 2>, SingleLoader>(problem, type, stream);
}

} // namespace trtkp

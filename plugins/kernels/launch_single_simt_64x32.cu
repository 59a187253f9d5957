#include "launch_gemm.cuh"

namespace trtkp
{

// Four warps, 4 x 4 sums a thread; 24 KiB of stages: four blocks on an SM of sm_80, by registers.
cudaError_t launchSingleSimt64x32(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    using Tile = GemmTile<64, 32, 16, 32, 2, 4>;
    return launchGemm32<Tile, SimtSums<Tile>, SingleLoader>(problem, type, stream);
}

} // namespace trtkp

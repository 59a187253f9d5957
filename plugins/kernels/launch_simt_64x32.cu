#include "launch_gemm.cuh"

namespace trtkp
{

// Four warps, 4 x 4 sums a thread; 36 KiB of stages: four blocks on an SM of sm_80.
cudaError_t launchSimt64x32(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    using Tile = GemmTile<64, 32, 16, 32, 3, 4>;
    return launchGemm32<Tile, SimtSums<Tile>, BlockLoader>(problem, type, stream);
}

} // namespace trtkp

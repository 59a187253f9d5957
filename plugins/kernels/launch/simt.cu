// T1 for float32 on the CUDA cores: tiles of gemm.cuh.
#include "gemm.cuh"

namespace trtkp
{

// Four warps, 8 x 8 sums a thread; 72 KiB of stages: two blocks on an SM of sm_80.
cudaError_t launchSimt128x64(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    using Tile = GemmTile<128, 64, 32, 64, 3, 2>;
    return launchGemm32<Tile, SimtSums<Tile>, BlockLoader>(problem, type, stream);
}

// Four warps, 4 x 4 sums a thread; 36 KiB of stages: four blocks on an SM of sm_80.
cudaError_t launchSimt64x32(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    using Tile = GemmTile<64, 32, 16, 32, 3, 4>;
    return launchGemm32<Tile, SimtSums<Tile>, BlockLoader>(problem, type, stream);
}

} // namespace trtkp

#include "launch_gemm.cuh"

namespace trtkp
{

// Four warps; 48 KiB of stages: three blocks on an SM of sm_80.
cudaError_t launchTf32At64x64(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    using Tile = GemmTile<64, 64, 32, 32, 3, 3>;
    return launchGemm32<Tile, TensorSums<Tile, float>, BlockLoader>(problem, type, stream);
}

} // namespace trtkp

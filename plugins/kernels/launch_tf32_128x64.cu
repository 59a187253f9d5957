#include "launch_gemm.cuh"

namespace trtkp
{

// Four warps; 72 KiB of stages: two blocks on an SM of sm_80.
cudaError_t launchTf32At128x64(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    using Tile = GemmTile<128, 64, 64, 32, 3, 2>;
    return launchGemm32<Tile, TensorSums<Tile, float>, BlockLoader>(problem, type, stream);
}

} // namespace trtkp

// T1 for float32 on tensor cores: tiles of gemm.cuh.
#include "gemm.cuh"

namespace trtkp
{

// Four warps; 72 KiB of stages: two blocks on an SM of sm_80.
cudaError_t launchTf32At128x64(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    using Tile = GemmTile<128, 64, 64, 32, 3, 2>;
    return launchGemm32<Tile, TensorSums<Tile, float>, BlockLoader>(problem, type, stream);
}

// Four warps; 48 KiB of stages: three blocks on an SM of sm_80.
cudaError_t launchTf32At64x64(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    using Tile = GemmTile<64, 64, 32, 32, 3, 3>;
    return launchGemm32<Tile, TensorSums<Tile, float>, BlockLoader>(problem, type, stream);
}

} // namespace trtkp

#include "launch_gemm.cuh"

namespace trtkp
{

// Eight warps; 48 KiB of stages: two blocks on an SM of sm_80, by registers.
cudaError_t launchSingleTf32At128x64(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    using Tile = GemmTile<128, 64, 32, 32, 2, 2>;
    return launchGemm32<Tile, TensorSums<Tile, float>, SingleLoader>(problem, type, stream);
}

} // namespace trtkp

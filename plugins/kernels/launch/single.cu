// T3: tiles of gemm.cuh that gather single elements.
#include "gemm.cuh"

namespace trtkp
{

// Eight warps; 48 KiB of stages: two blocks on an SM of sm_80, by registers.
cudaError_t launchSingle128x64(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    return launchGemm16<GemmTile<128, 64, 32, 32, 2, 2>, SingleLoader>(problem, type, stream);
}

// Eight warps; 40 KiB of stages. A warp has 16 rows: for filter groups of 16 and 32.
cudaError_t launchSingle128x32(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    return launchGemm16<GemmTile<128, 32, 32, 16, 2, 2>, SingleLoader>(problem, type, stream);
}

// Eight warps; 36 KiB of stages, for filter groups of up to 16.
cudaError_t launchSingle128x16(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    return launchGemm16<GemmTile<128, 16, 16, 16, 2, 2>, SingleLoader>(problem, type, stream);
}

// Eight warps; 48 KiB of stages: two blocks on an SM of sm_80, by registers.
cudaError_t launchSingleTf32At128x64(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    using Tile = GemmTile<128, 64, 32, 32, 2, 2>;
    return launchGemm32<Tile, TensorSums<Tile, float>, SingleLoader>(problem, type, stream);
}

// Four warps, 4 x 4 sums a thread; 24 KiB of stages: four blocks on an SM of sm_80, by registers.
cudaError_t launchSingleSimt64x32(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    using Tile = GemmTile<64, 32, 16, 32, 2, 4>;
    return launchGemm32<Tile, SimtSums<Tile>, SingleLoader>(problem, type, stream);
}

} // namespace trtkp

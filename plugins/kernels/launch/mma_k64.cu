// T1 with 64 columns a step: tiles of gemm.cuh that gather blocks of 8 channels.
#include "gemm.cuh"

namespace trtkp
{

// Eight warps; 64 KiB of stages: two blocks on an SM of sm_80. A step is long enough to hide the copies of the next.
cudaError_t launchMma128x128K64(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    return launchGemm16<GemmTile<128, 128, 64, 32, 2, 2>, BlockLoader>(problem, type, stream);
}

// Four warps; 72 KiB of stages: two blocks on an SM of sm_80, three of sm_90.
cudaError_t launchMma128x64K64(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    return launchGemm16<GemmTile<128, 64, 64, 32, 3, 2>, BlockLoader>(problem, type, stream);
}

// Four warps; 48 KiB of stages: three blocks on an SM of sm_80.
cudaError_t launchMma64x64K64(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    return launchGemm16<GemmTile<64, 64, 32, 32, 3, 3>, BlockLoader>(problem, type, stream);
}

// Four warps; 60 KiB of stages: two blocks on an SM of sm_80. A warp has 16 rows: for filter groups of 16 and 32.
cudaError_t launchMma128x32K64(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    return launchGemm16<GemmTile<128, 32, 64, 16, 3, 2>, BlockLoader>(problem, type, stream);
}

} // namespace trtkp

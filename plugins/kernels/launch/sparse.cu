// T4 for lists in blocks of 8 channels: tiles of sparse.cuh.
#include "sparse.cuh"

namespace trtkp
{

// Eight warps; 75 KiB of stages.
cudaError_t launchSparse128x128(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    return launchSparse<SparseTile<128, 128, 32, 64, 3, 2, false>>(problem, type, stream);
}

// Four warps; 62 KiB of stages, for filter groups of 64.
cudaError_t launchSparse128x64(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    return launchSparse<SparseTile<128, 64, 32, 64, 3, 2, false>>(problem, type, stream);
}

// Four warps; 38 KiB of stages, for the smaller layers.
cudaError_t launchSparse64x64(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    return launchSparse<SparseTile<64, 64, 32, 32, 3, 3, false>>(problem, type, stream);
}

} // namespace trtkp

#include "launch_sparse.cuh"

namespace trtkp
{

// Four warps; 38 KiB of stages, for the smaller layers.
cudaError_t launchSparse64x64(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    return launchSparse<SparseTile<64, 64, 32, 32, 3, 3, false>>(problem, type, stream);
}

} // namespace trtkp

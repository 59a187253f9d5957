#include "launch_sparse.cuh"

namespace trtkp
{

// Four warps; 62 KiB of stages, for filter groups of 64.
cudaError_t launchSparse128x64(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    return launchSparse<SparseTile<128, 64, 32, 64, 3, 2, false>>(problem, type, stream);
}

} // namespace trtkp

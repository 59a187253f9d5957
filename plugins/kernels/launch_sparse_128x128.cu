#include "launch_sparse.cuh"

namespace trtkp
{

// Eight warps; 75 KiB of stages.
cudaError_t launchSparse128x128(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    return launchSparse<SparseTile<128, 128, 32, 64, 3, 2, false>>(problem, type, stream);
}

} // namespace trtkp

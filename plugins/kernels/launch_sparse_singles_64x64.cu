#include "launch_sparse.cuh"

namespace trtkp
{

// Four warps; every gathered channel serves 64 rows.
cudaError_t launchSparseSingles64x64(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    return launchSparse<SparseTile<64, 64, 32, 32, 3, 3, true>>(problem, type, stream);
}

} // namespace trtkp

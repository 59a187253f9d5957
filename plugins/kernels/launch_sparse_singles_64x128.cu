#include "launch_sparse.cuh"

namespace trtkp
{

// Eight warps; every gathered channel serves 128 rows.
cudaError_t launchSparseSingles64x128(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    return launchSparse<SparseTile<64, 128, 32, 32, 3, 2, true>>(problem, type, stream);
}

} // namespace trtkp

// T4 for any list: tiles of sparse.cuh that gather single channels.
#include "sparse.cuh"

namespace trtkp
{

// Four warps; every gathered channel serves 64 rows.
cudaError_t launchSparseSingles64x64(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    return launchSparse<SparseTile<64, 64, 32, 32, 3, 3, true>>(problem, type, stream);
}

// Eight warps; every gathered channel serves 128 rows.
cudaError_t launchSparseSingles64x128(ConvProblem const& problem, DataType type, cudaStream_t stream)
{
    return launchSparse<SparseTile<64, 128, 32, 32, 3, 2, true>>(problem, type, stream);
}

} // namespace trtkp

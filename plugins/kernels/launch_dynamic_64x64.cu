#include "launch_dynamic.cuh"

namespace trtkp
{

cudaError_t launchDynamic64x64(DynamicProblem const& problem, DataType type, cudaStream_t stream)
{
    return launchDynamic<MmaTile<64, 64, 32, 32, 4>>(problem, type, stream);
}

} // namespace trtkp

#include "launch_dynamic.cuh"

namespace trtkp
{

cudaError_t launchDynamic128x64(DynamicProblem const& problem, DataType type, cudaStream_t stream)
{
    return launchDynamic<MmaTile<128, 64, 64, 32, 3>>(problem, type, stream);
}

} // namespace trtkp

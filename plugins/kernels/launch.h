// The launchers: what the C interface calls. None checks its arguments; each returns the error of the launch.
#pragma once

#include "problem.h"

#include <cuda_runtime.h>

namespace trtkp
{

cudaError_t launchReference(ConvProblem const& problem, DataType type, cudaStream_t stream);

// T1, by pixels x rows of a block; kFLOAT16 and kBFLOAT16. Where problem.splits is more than 1, launchSplit follows.
cudaError_t launchMma128x128(ConvProblem const& problem, DataType type, cudaStream_t stream);
cudaError_t launchMma128x64(ConvProblem const& problem, DataType type, cudaStream_t stream);
cudaError_t launchMma64x64(ConvProblem const& problem, DataType type, cudaStream_t stream);
cudaError_t launchMma64x32(ConvProblem const& problem, DataType type, cudaStream_t stream);

// T4, likewise; problem.metadata is given. The last two gather single channels.
cudaError_t launchSparse128x128(ConvProblem const& problem, DataType type, cudaStream_t stream);
cudaError_t launchSparse128x64(ConvProblem const& problem, DataType type, cudaStream_t stream);
cudaError_t launchSparse64x64(ConvProblem const& problem, DataType type, cudaStream_t stream);
cudaError_t launchSparseSingles64x64(ConvProblem const& problem, DataType type, cudaStream_t stream);
cudaError_t launchSparseSingles64x128(ConvProblem const& problem, DataType type, cudaStream_t stream);

cudaError_t launchSplit(ConvProblem const& problem, DataType type, cudaStream_t stream);

// The dynamic pattern: weights of all samples, then one of the others.
cudaError_t launchAggregate(DynamicProblem const& problem, DataType type, cudaStream_t stream);
cudaError_t launchDynamicReference(DynamicProblem const& problem, DataType type, cudaStream_t stream);
cudaError_t launchDynamic128x64(DynamicProblem const& problem, DataType type, cudaStream_t stream);
cudaError_t launchDynamic64x64(DynamicProblem const& problem, DataType type, cudaStream_t stream);

} // namespace trtkp

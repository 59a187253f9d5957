// The launchers: what the C interface calls. None checks its arguments; each returns the error of the launch.
#pragma once

#include "../problem.h"

#include <cuda_runtime.h>

namespace trtkp
{

cudaError_t launchReference(ConvProblem const& problem, DataType type, cudaStream_t stream);

// T1 with 32 columns a step, by pixels x rows of a block; kFLOAT16 and kBFLOAT16. Where problem.splits is more than 1,
// launchSplit follows.
cudaError_t launchMma128x128(ConvProblem const& problem, DataType type, cudaStream_t stream);
cudaError_t launchMma128x64(ConvProblem const& problem, DataType type, cudaStream_t stream);
cudaError_t launchMma64x64(ConvProblem const& problem, DataType type, cudaStream_t stream);
cudaError_t launchMma64x32(ConvProblem const& problem, DataType type, cudaStream_t stream);

// T1 with 64 columns a step, by pixels x rows of a block; kFLOAT16 and kBFLOAT16. Lists in blocks of 8, C a multiple of
// 8, R + S at most 31; splits as above.
cudaError_t launchMma128x128K64(ConvProblem const& problem, DataType type, cudaStream_t stream);
cudaError_t launchMma128x64K64(ConvProblem const& problem, DataType type, cudaStream_t stream);
cudaError_t launchMma64x64K64(ConvProblem const& problem, DataType type, cudaStream_t stream);
cudaError_t launchMma128x32K64(ConvProblem const& problem, DataType type, cudaStream_t stream);

// The same for kFLOAT32: on tensor cores as TF32, and in float32 on the CUDA cores.
cudaError_t launchTf32At128x64(ConvProblem const& problem, DataType type, cudaStream_t stream);
cudaError_t launchTf32At64x64(ConvProblem const& problem, DataType type, cudaStream_t stream);
cudaError_t launchSimt128x64(ConvProblem const& problem, DataType type, cudaStream_t stream);
cudaError_t launchSimt64x32(ConvProblem const& problem, DataType type, cudaStream_t stream);

// T3: gathers of single elements, any list and pitch, R + S at most 31. kFLOAT16 and kBFLOAT16, then kFLOAT32.
cudaError_t launchSingle128x64(ConvProblem const& problem, DataType type, cudaStream_t stream);
cudaError_t launchSingle128x32(ConvProblem const& problem, DataType type, cudaStream_t stream);
cudaError_t launchSingle128x16(ConvProblem const& problem, DataType type, cudaStream_t stream);
cudaError_t launchSingleTf32At128x64(ConvProblem const& problem, DataType type, cudaStream_t stream);
cudaError_t launchSingleSimt64x32(ConvProblem const& problem, DataType type, cudaStream_t stream);

// T3 for groups of a few filters, where directFits says that a channel of the input under a tile fits shared memory.
cudaError_t launchDirect(ConvProblem const& problem, DataType type, cudaStream_t stream);
bool directFits(ConvProblem const& problem, int32_t elementSize);
int64_t directBlocks(ConvProblem const& problem);

// T4, for 2:4 weights with their metadata: kFLOAT16 and kBFLOAT16, splits as T1. Lists in blocks of 8; the last two
// gather single channels.
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

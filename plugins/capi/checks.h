// The checks of arguments that the static and the dynamic interface share.
#pragma once

#include "error.h"
#include "layer.h"

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace trtkp::capi
{

// Kernels read and write 16 bytes at a time.
int32_t constexpr kAlignment = 16;

inline int64_t pixelCount(ConvProblem const& problem)
{
    return static_cast<int64_t>(problem.batch) * problem.outHeight * problem.outWidth;
}

// Checks a structure of the interface, which begins with its own size.
template <typename Struct>
void requireStruct(char const* name, Struct const* given)
{
    require(given != nullptr, name, " is null");
    require(given->structSize == sizeof(Struct), name, ".structSize is ", given->structSize, ", not ", sizeof(Struct));
}

template <typename Desc>
void requireDesc(Desc const* desc)
{
    requireStruct("desc", desc);
    require(desc->interfaceVersion == TRTKP_INTERFACE_VERSION, "desc.interfaceVersion is ", desc->interfaceVersion,
        ", not ", TRTKP_INTERFACE_VERSION);
}

inline void requirePointer(char const* name, void const* pointer, int32_t alignment)
{
    require(pointer != nullptr, name, " is null");
    require(reinterpret_cast<uintptr_t>(pointer) % alignment == 0, name, " is not aligned to ", alignment, " bytes");
}

// Checks a tensor that must be given exactly if a field of the description says so.
inline void requireIf(bool isDescribed, char const* name, void const* pointer, char const* field)
{
    require((pointer != nullptr) == isDescribed, name, " is ", isDescribed ? "null" : "given", ", unlike ", field);
    if (isDescribed)
    {
        requirePointer(name, pointer, kAlignment);
    }
}

// The memory of y, which no other tensor may overlap: blocks write it while others still read.
struct Output
{
    void const* y;
    int64_t bytes;

    Output(Layer const& layer, void const* y_)
        : y{y_}
        , bytes{pixelCount(layer.problem) * layer.problem.yPitch * elementSize(layer.type)}
    {
    }

    void requireApart(char const* name, void const* pointer, int64_t size) const
    {
        auto const first = reinterpret_cast<uintptr_t>(pointer);
        auto const second = reinterpret_cast<uintptr_t>(y);
        auto const end = second + static_cast<uintptr_t>(bytes);
        require(
            pointer == nullptr || first + static_cast<uintptr_t>(size) <= second || end <= first, "y overlaps ", name);
    }
};

// Checks the tensors that trtkpConvTensors and trtkpDynamicTensors have in common.
template <typename Tensors>
Output requireTensors(Layer const& layer, Tensors const* tensors, int64_t weightElements)
{
    requireStruct("tensors", tensors);
    require(tensors->reserved == 0, "tensors.reserved is not 0");
    requirePointer("x", tensors->x, kAlignment);
    requirePointer("weight", tensors->weight, kAlignment);
    requirePointer("y", tensors->y, kAlignment);
    requirePointer("index", tensors->index, sizeof(int32_t));
    requireIf(layer.hasBias, "bias", tensors->bias, "hasBias");
    requireIf(layer.hasResidual, "residual", tensors->residual, "hasResidual");

    ConvProblem const& problem = layer.problem;
    int64_t const size = elementSize(layer.type);
    Output const output{layer, tensors->y};
    output.requireApart("x", tensors->x, size * problem.batch * problem.height * problem.width * problem.xPitch);
    output.requireApart("weight", tensors->weight, size * weightElements);
    output.requireApart("index", tensors->index, sizeof(int32_t) * int64_t{problem.listGroups} * problem.listLength);
    output.requireApart("bias", tensors->bias, size * problem.filters);
    output.requireApart("residual", tensors->residual, size * pixelCount(problem) * problem.residualPitch);
    return output;
}

// Checks the workspace of a launch that needs this many bytes.
template <typename Tensors>
void requireWorkspace(Tensors const& tensors, size_t bytes, Output const& output)
{
    requirePointer("workspace", tensors.workspace, kAlignment);
    require(tensors.workspaceBytes >= bytes, "workspaceBytes is ", tensors.workspaceBytes, ", less than ", bytes);
    output.requireApart("workspace", tensors.workspace, static_cast<int64_t>(bytes));
}

// Turns CUDA's refusal of a launch into an error. One reason is that the library has no kernel for the GPU's
// architecture.
inline void requireLaunched(char const* tactic, cudaError_t status)
{
    if (status != cudaSuccess)
    {
        fail(TRTKP_CUDA_ERROR, "launching ", tactic, ": ", cudaGetErrorString(status));
    }
}

} // namespace trtkp::capi

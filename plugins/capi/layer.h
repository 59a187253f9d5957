// From a description to the problem that kernels take, with every check on the host.
#pragma once

#include "../kernels/problem.h"
#include "trtkp.h"

namespace trtkp::capi
{

struct Layer
{
    ConvProblem problem; // its pointers are null
    DataType type;
    int32_t listBlock;
    bool hasBias;
    bool hasResidual;
    bool allowTf32;
    bool isTwoFour;
};

// Size of an element in bytes.
int32_t elementSize(DataType type);

// Checks a description. Throws Error with the name and the value of the field at fault.
Layer checkedLayer(trtkpConvDesc const* desc);

// Checks lists in host memory. Returns 8 if they come in blocks of 8 channels, else 1.
int32_t checkedLists(Layer const& layer, int32_t const* index, int32_t const* rowGroup, int32_t const* rowFilter);

// Number of words of metadata for 2:4 weights.
int64_t metadataWords(ConvProblem const& problem);

// Checks metadata in host memory.
void checkMetadata(Layer const& layer, int32_t const* metadata);

} // namespace trtkp::capi

// From a description to the problem that kernels take: every check on the host.
#pragma once

#include "../kernels/problem.h"
#include "trtkp.h"

namespace trtkp::capi
{

struct Layer
{
    ConvProblem problem; // without pointers
    DataType type;
    int32_t listBlock;
    bool hasBias;
    bool hasResidual;
    bool allowTf32;
    bool isTwoFour;
};

// Bytes of one element.
int32_t elementSize(DataType type);

// Throws Error with the field and its value.
Layer checkedLayer(trtkpConvDesc const* desc);

// Checks lists in host memory; the block that they may promise.
int32_t checkedLists(Layer const& layer, int32_t const* index, int32_t const* rowGroup, int32_t const* rowFilter);

// Words of metadata that a problem of 2:4 weights has.
int64_t metadataWords(ConvProblem const& problem);

// Checks metadata in host memory.
void checkMetadata(Layer const& layer, int32_t const* metadata);

} // namespace trtkp::capi

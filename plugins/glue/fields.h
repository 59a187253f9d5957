// Typed fields of a plugin, read with every check and written back.
#pragma once

#include "tensorrt.h"

#include <cstdint>
#include <string>
#include <vector>

namespace trtkp::glue
{

// A number of fixed count and type that a plugin has as a field.
struct FieldSpec
{
    char const* name;
    nvinfer1::PluginFieldType type; // kINT32 or kFLOAT32
    int32_t length;
};

// Copies the field of that name to `values`. False where there is none. Throws Error where it has another type or
// length or no data, or stands twice.
bool readField(nvinfer1::PluginFieldCollection const& fields, FieldSpec const& spec, void* values);

// Throws Error unless the collection is whole and every name in it is one of the specifications.
void checkNames(nvinfer1::PluginFieldCollection const* fields, std::vector<FieldSpec> const& specs);

} // namespace trtkp::glue

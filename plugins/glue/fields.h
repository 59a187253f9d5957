// The typed fields of a plugin: read with every check, and written back.
#pragma once

#include "tensorrt.h"

#include <cstdint>
#include <string>
#include <vector>

namespace trtkp::glue
{

// The length of a text in its specification.
int32_t constexpr kAnyLength = 0;

// A field of a plugin: its name, its type and how many numbers it has.
struct FieldSpec
{
    char const* name;
    nvinfer1::PluginFieldType type; // kINT32 or kFLOAT32; kCHAR for a text
    int32_t length;
};

// Copies a field to `values`. Returns false if there is none of this name. Throws Error if the field has another type
// or length, has no data, or is given twice.
bool readField(nvinfer1::PluginFieldCollection const& fields, FieldSpec const& spec, void* values);

// Reads a text, with or without zeros at its end; empty if there is no field of this name. Throws Error as above.
std::string readText(nvinfer1::PluginFieldCollection const& fields, FieldSpec const& spec);

// Throws Error if the collection is malformed, or has a name that is not among the specifications.
void checkNames(nvinfer1::PluginFieldCollection const* fields, std::vector<FieldSpec> const& specs);

} // namespace trtkp::glue

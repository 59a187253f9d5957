#include "fields.h"

#include "error.h"

#include <algorithm>
#include <cstring>

namespace trtkp::glue
{
namespace
{

char const* typeName(nvinfer1::PluginFieldType type)
{
    static char const* const names[]
        = {"float16", "float32", "float64", "int8", "int16", "int32", "char", "dims", "unknown"};
    auto const number = static_cast<size_t>(type);
    return number < std::size(names) ? names[number] : "another type";
}

// The field of a specification; null if there is none of its name.
nvinfer1::PluginField const* fieldOf(nvinfer1::PluginFieldCollection const& fields, FieldSpec const& spec)
{
    nvinfer1::PluginField const* found = nullptr;
    for (int32_t i = 0; i < fields.nbFields; ++i)
    {
        if (std::strcmp(fields.fields[i].name, spec.name) == 0)
        {
            require(found == nullptr, "field ", spec.name, " is given twice");
            found = &fields.fields[i];
        }
    }
    if (found == nullptr)
    {
        return nullptr;
    }
    require(found->type == spec.type, "field ", spec.name, " is of type ", typeName(found->type), ", not ",
        typeName(spec.type));
    require(spec.length == kAnyLength ? found->length >= 0 : found->length == spec.length, "field ", spec.name, " has ",
        found->length, " values, not ", spec.length);
    require(found->data != nullptr || found->length == 0, "field ", spec.name, " has no data");
    return found;
}

} // namespace

bool readField(nvinfer1::PluginFieldCollection const& fields, FieldSpec const& spec, void* values)
{
    auto const* const found = fieldOf(fields, spec);
    if (found != nullptr)
    {
        std::memcpy(values, found->data, sizeof(int32_t) * spec.length);
    }
    return found != nullptr;
}

std::string readText(nvinfer1::PluginFieldCollection const& fields, FieldSpec const& spec)
{
    auto const* const found = fieldOf(fields, spec);
    if (found == nullptr || found->length == 0)
    {
        return {};
    }
    std::string text(static_cast<char const*>(found->data), found->length);
    text.erase(text.find_last_not_of('\0') + 1);
    return text;
}

void checkNames(nvinfer1::PluginFieldCollection const* fields, std::vector<FieldSpec> const& specs)
{
    require(fields != nullptr, "there is no field collection");
    require(fields->nbFields >= 0 && (fields->nbFields == 0 || fields->fields != nullptr), "the field collection has ",
        fields->nbFields, " fields and no array of them");
    for (int32_t i = 0; i < fields->nbFields; ++i)
    {
        char const* const name = fields->fields[i].name;
        require(name != nullptr, "field ", i, " has no name");
        require(std::any_of(specs.begin(), specs.end(),
                    [&](FieldSpec const& spec) { return std::strcmp(spec.name, name) == 0; }),
            "field ", name, " is not known");
    }
}

} // namespace trtkp::glue

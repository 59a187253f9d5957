// A case for plugin_host to play, read from a text of lines: "version V" (of the TensorRT that is played, such as
// 110000), "operator NAME", "phase P", "field NAME TYPE LENGTH [BYTES in hexadecimal]", "type T", "tensor BYTES
// DIMS..." for each input, then the output (where the first input has its profile's least batch as "least N"
// and, for stub_host, its typical one as "typical N"),
// "tolerance T", "capability 90" (of the GPU that is played) and "spoil WHAT".

#pragma once

#include "../../plugins/glue/tensorrt.h"
#include "check.h"

#include <cstdlib>
#include <cstring>
#include <deque>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

namespace host
{

using namespace nvinfer1;

// Fields in memory of their own, each of exactly its size.
class Fields
{
public:
    void add(std::string const& name, int32_t type, int32_t length, std::vector<char> const* bytes)
    {
        mNames.push_back(name);
        char* data = nullptr;
        if (bytes != nullptr)
        {
            data = static_cast<char*>(std::malloc(bytes->size()));
            std::memcpy(data, bytes->data(), bytes->size());
        }
        mFields.emplace_back(mNames.back().c_str(), data, static_cast<PluginFieldType>(type), length);
    }

    explicit Fields(PluginFieldCollection const& others)
    {
        for (int32_t i = 0; i < others.nbFields; ++i)
        {
            auto const& field = others.fields[i];
            auto const* const data = static_cast<char const*>(field.data);
            size_t const size = field.type == PluginFieldType::kCHAR ? 1 : 4;
            std::vector<char> const bytes(data, data + size * field.length);
            add(field.name, static_cast<int32_t>(field.type), field.length, &bytes);
        }
    }

    Fields() = default;
    Fields(Fields const&) = delete;

    ~Fields()
    {
        for (auto const& field : mFields)
        {
            std::free(const_cast<void*>(field.data));
        }
    }

    PluginFieldCollection const* collection()
    {
        mCollection = {static_cast<int32_t>(mFields.size()), mFields.data()};
        return &mCollection;
    }

private:
    std::deque<std::string> mNames;
    std::vector<PluginField> mFields;
    PluginFieldCollection mCollection;
};

struct Tensor
{
    Dims dims{};
    size_t bytes{0};
};

struct Case
{
    int32_t version{110000}; // of the TensorRT that is played
    std::string op;
    std::string spoilt;
    TensorRTPhase phase{TensorRTPhase::kBUILD};
    DataType type{DataType::kFLOAT};
    int64_t least{1};
    int64_t typical{1};     // of stub_host
    double tolerance{0.0};  // of played orders, relative
    int32_t capability{90}; // of the GPU
    Fields fields;
    std::vector<Tensor> tensors; // the output is the last
};

inline void readCase(char const* path, Case& read)
{
    std::ifstream file{path};
    expect(file.good(), "no case file");
    for (std::string line; std::getline(file, line);)
    {
        std::istringstream words{line};
        std::string key;
        words >> key;
        if (key == "version")
        {
            words >> read.version;
        }
        else if (key == "operator")
        {
            words >> read.op;
        }
        else if (key == "spoil")
        {
            words >> read.spoilt;
        }
        else if (key == "phase")
        {
            int32_t number = 0;
            words >> number;
            read.phase = static_cast<TensorRTPhase>(number);
        }
        else if (key == "type")
        {
            int32_t number = 0;
            words >> number;
            read.type = static_cast<DataType>(number);
        }
        else if (key == "least")
        {
            words >> read.least;
        }
        else if (key == "typical")
        {
            words >> read.typical;
        }
        else if (key == "tolerance")
        {
            words >> read.tolerance;
        }
        else if (key == "capability")
        {
            words >> read.capability;
        }
        else if (key == "field")
        {
            std::string name;
            std::string digits;
            int32_t type = 0;
            int32_t length = 0;
            words >> name >> type >> length;
            bool const hasData = static_cast<bool>(words >> digits);
            std::vector<char> bytes;
            for (size_t i = 0; i + 1 < digits.size(); i += 2)
            {
                bytes.push_back(static_cast<char>(std::stoi(digits.substr(i, 2), nullptr, 16)));
            }
            read.fields.add(name, type, length, hasData ? &bytes : nullptr);
        }
        else if (key == "tensor")
        {
            Tensor tensor;
            words >> tensor.bytes;
            for (int64_t size = 0; words >> size;)
            {
                tensor.dims.d[tensor.dims.nbDims++] = size;
            }
            read.tensors.push_back(tensor);
        }
        else
        {
            die("no such line: " + line);
        }
    }
}

} // namespace host

// Calls on a plugin that every way of playing TensorRT makes, and the memory that it is given.

#pragma once

#include "case.h"
#include "check.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace host
{

// The tensors in a form that the plugin supports, found as TensorRT does: position after position.
inline std::vector<DynamicPluginTensorDesc> negotiated(IPluginV3OneBuild& build, Case const& given)
{
    auto const inputs = static_cast<int32_t>(given.tensors.size()) - 1;
    std::vector<DynamicPluginTensorDesc> all(given.tensors.size());
    for (int32_t pos = 0; pos <= inputs; ++pos)
    {
        auto& tensor = all[pos];
        tensor.desc.dims = tensor.min = tensor.max = tensor.opt = given.tensors[pos].dims;
        std::vector<std::pair<DataType, TensorFormat>> supported;
        for (DataType const type : {DataType::kFLOAT, DataType::kHALF, DataType::kBF16, DataType::kINT32,
                 DataType::kINT8, DataType::kINT64, DataType::kBOOL})
        {
            for (int32_t format = 0; format <= 12; ++format)
            {
                // Strongly typed: X has the network's type.
                tensor.desc.type = type;
                tensor.desc.format = static_cast<TensorFormat>(format);
                if ((pos > 0 || type == given.type) && build.supportsFormatCombination(pos, all.data(), inputs, 1))
                {
                    supported.emplace_back(type, tensor.desc.format);
                }
            }
        }
        expect(supported.size() == 1,
            "position " + std::to_string(pos) + " has " + std::to_string(supported.size()) + " forms");
        std::tie(tensor.desc.type, tensor.desc.format) = supported.front();
    }
    return all;
}

inline std::vector<int32_t> tacticsOf(IPluginV3OneBuild& build)
{
    std::vector<int32_t> tactics(build.getNbTactics());
    expect(build.getValidTactics(tactics.data(), build.getNbTactics()) == 0, "tactics");
    expect(std::set<int32_t>(tactics.begin(), tactics.end()).size() == tactics.size(), "a tactic twice");
    expect(std::find(tactics.begin(), tactics.end(), 0) == tactics.end(), "tactic 0");
    return tactics;
}

template <typename Capability>
Capability& capability(IPluginV3& plugin, PluginCapabilityType type)
{
    return *static_cast<Capability*>(plugin.getCapabilityInterface(type));
}

struct Memory
{
    explicit Memory(size_t bytes)
        : at{std::malloc(std::max<size_t>(bytes, 1))}
    {
        std::memset(at, 0xff, bytes); // NaN: an element that is never written shows
    }
    Memory(Memory&& other) noexcept
        : at{other.at}
    {
        other.at = nullptr;
    }
    ~Memory()
    {
        std::free(at);
    }
    void* at;
};

// Whether a tensor has the batch as its first size.
inline bool isBatched(Case const& given, int32_t place)
{
    bool const isAttention = given.op.rfind("Dynamic", 0) == 0 && place == 3;
    return given.tensors[place].dims.nbDims == 4 || isAttention;
}

// Makes a profile for a range of batches.
inline void widen(
    std::vector<DynamicPluginTensorDesc>& tensors, Case const& given, int64_t least, int64_t typical, int64_t most)
{
    for (size_t i = 0; i < tensors.size(); ++i)
    {
        if (isBatched(given, static_cast<int32_t>(i)))
        {
            auto& tensor = tensors[i];
            tensor.desc.dims.d[0] = -1;
            tensor.min.d[0] = least;
            tensor.opt.d[0] = typical;
            tensor.max.d[0] = most;
        }
    }
}

// The tensors of a profile at one batch.
inline std::vector<PluginTensorDesc> atBatch(
    std::vector<DynamicPluginTensorDesc> const& profile, Case const& given, int64_t batch)
{
    std::vector<PluginTensorDesc> all;
    for (size_t i = 0; i < profile.size(); ++i)
    {
        all.push_back(profile[i].desc);
        all.back().dims.d[0] = isBatched(given, static_cast<int32_t>(i)) ? batch : all.back().dims.d[0];
    }
    return all;
}

} // namespace host

// Cases as tests write them, and what the programs that run them share.
//
// A case is a description, int32 tactic, uint32 seed, the sizes in bytes of its tensors (int64; 0 for none) and of y,
// and the bytes of the tensors.
#pragma once

#include "emulator.h"

#include "../../plugins/capi/trtkp.h"

#include <cstdint>
#include <cstdio>
#include <fstream>
#include <vector>

namespace emulation
{

// A tensor in memory of exactly its size, at a multiple of 16 bytes.
using Memory = std::vector<char>;

// Full of NaN: an element that is never written shows.
inline Memory notANumber(size_t bytes)
{
    return Memory(bytes, '\xff');
}

template <typename Desc, int kTensors>
struct Case
{
    struct
    {
        Desc desc;
        int32_t tactic;
        uint32_t seed;
        int64_t sizes[kTensors + 1];
    } header{};
    Memory tensors[kTensors];

    // False if there is no such file or it is too short.
    bool read(char const* path)
    {
        std::ifstream input{path, std::ios::binary};
        input.read(reinterpret_cast<char*>(&header), sizeof(header));
        for (int i = 0; input && i < kTensors; ++i)
        {
            tensors[i] = Memory(header.sizes[i]);
            input.read(tensors[i].data(), header.sizes[i]);
        }
        return static_cast<bool>(input);
    }

    [[nodiscard]] size_t outputBytes() const
    {
        return header.sizes[kTensors];
    }

    // Null for a tensor that is not there.
    [[nodiscard]] void* at(int tensor)
    {
        return tensors[tensor].empty() ? nullptr : tensors[tensor].data();
    }
};

inline void write(char const* path, Memory const& memory)
{
    std::ofstream{path, std::ios::binary}.write(memory.data(), static_cast<std::streamsize>(memory.size()));
}

// Prints the error that there is, and gives the status to end with.
inline int report(trtkpStatus status)
{
    if (status != TRTKP_OK)
    {
        std::printf("error: %s\n", trtkpLastError());
    }
    return status;
}

} // namespace emulation

// Runs one dynamic pattern convolution through the C interface: run_dynamic CASE OUTPUT [SPOILT TENSOR].
//
// CASE is a trtkpDynamicDesc, int32 tactic, uint32 seed, six int64 sizes in bytes (x, weight, attention, index, bias,
// residual; 0 for none), the size of y, and the bytes of the six. Every tensor stands in memory of exactly its size.
// SPOILT spoils a pointer before the launch: "null", "misaligned" or "y" (y begins in the tensor), by the number of the
// tensor (6: y, 7: workspace; "short 7" gives too little workspace). Prints the tactics; ends with the status.

#include "emulator.h"

#include "../../plugins/capi/trtkp.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>

namespace
{

int constexpr kTensors = 6;

struct Header
{
    trtkpDynamicDesc desc;
    int32_t tactic;
    uint32_t seed;
    int64_t sizes[kTensors + 1];
};

int report(trtkpStatus status)
{
    std::printf("error: %s\n", trtkpLastError());
    return status;
}

} // namespace

int main(int argc, char** argv)
{
    std::ifstream input{argv[1], std::ios::binary};
    Header header{};
    input.read(reinterpret_cast<char*>(&header), sizeof(header));
    if (argc < 3 || !input)
    {
        std::fprintf(stderr, "usage: run_dynamic CASE OUTPUT [SPOILT TENSOR]\n");
        return emulation::kFailureStatus;
    }
    emulation::setSeed(header.seed);
    int32_t tactics[TRTKP_TACTIC_COUNT];
    int32_t count = 0;
    size_t workspaceBytes = 0;
    trtkpStatus status = trtkpDynamicTactics(&header.desc, tactics, TRTKP_TACTIC_COUNT, &count);
    for (int32_t i = 0; i < count; ++i)
    {
        std::printf("%s\n", trtkpTacticName(tactics[i]));
    }
    status = status != TRTKP_OK ? status : trtkpDynamicWorkspaceBytes(&header.desc, header.tactic, &workspaceBytes);
    if (status != TRTKP_OK)
    {
        return report(status);
    }

    void* memory[kTensors + 2] = {};
    void* tensors[kTensors + 2] = {};
    size_t const yBytes = header.sizes[kTensors];
    for (int i = 0; i < kTensors + 2; ++i)
    {
        size_t const bytes = i <= kTensors ? header.sizes[i] : workspaceBytes;
        if (bytes > 0)
        {
            memory[i] = tensors[i] = std::malloc(bytes);
            if (i < kTensors)
            {
                input.read(static_cast<char*>(memory[i]), bytes);
            }
            else
            {
                std::memset(memory[i], 0xff, bytes); // NaN: an element that is never written shows
            }
        }
    }
    if (argc > 4)
    {
        std::string const spoilt = argv[3];
        void*& tensor = tensors[std::atoi(argv[4])];
        if (spoilt == "null")
        {
            tensor = nullptr;
        }
        else if (spoilt == "misaligned")
        {
            tensor = static_cast<char*>(tensor) + 2;
        }
        else if (spoilt == "y")
        {
            tensors[kTensors] = tensor;
        }
        else if (spoilt == "short")
        {
            --workspaceBytes;
        }
    }
    trtkpDynamicTensors const arguments{sizeof(trtkpDynamicTensors), 0, tensors[0], tensors[1], tensors[2],
        static_cast<int32_t const*>(tensors[3]), tensors[4], tensors[5], tensors[6], tensors[7], workspaceBytes};
    status = trtkpDynamicLaunch(&header.desc, header.tactic, &arguments, nullptr);
    if (status == TRTKP_OK)
    {
        std::ofstream{argv[2], std::ios::binary}.write(static_cast<char const*>(memory[kTensors]), yBytes);
    }
    for (void* const each : memory)
    {
        std::free(each);
    }
    return status == TRTKP_OK ? 0 : report(status);
}

// Runs one case through the C interface: run_conv CASE OUTPUT.
//
// CASE is a trtkpConvDesc, int32 tactic, uint32 seed, eight int64 sizes in bytes (x, weight, index, rowGroup,
// rowFilter, bias, residual, metadata; 0 for none), the size of y, and the bytes of the eight. Every tensor stands in
// memory of exactly its size. Without OUTPUT nothing is launched; a third argument leaves the lists unchecked. Prints
// the tactics and the block of the lists; ends with the status.

#include "emulator.h"

#include "../../plugins/capi/trtkp.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <vector>

namespace
{

int constexpr kTensors = 8;

struct Header
{
    trtkpConvDesc desc;
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
    if (argc < 2 || !input)
    {
        std::fprintf(stderr, "usage: run_conv CASE [OUTPUT]\n");
        return emulation::kFailureStatus;
    }
    void* tensors[kTensors] = {};
    for (int i = 0; i < kTensors; ++i)
    {
        if (header.sizes[i] > 0)
        {
            tensors[i] = std::malloc(header.sizes[i]);
            input.read(static_cast<char*>(tensors[i]), header.sizes[i]);
        }
    }
    emulation::setSeed(header.seed);

    auto const* const index = static_cast<int32_t const*>(tensors[2]);
    auto const* const rowGroup = static_cast<int32_t const*>(tensors[3]);
    auto const* const rowFilter = static_cast<int32_t const*>(tensors[4]);
    int32_t tactics[TRTKP_TACTIC_COUNT];
    int32_t count = 0;
    trtkpStatus status = trtkpConvTactics(&header.desc, tactics, TRTKP_TACTIC_COUNT, &count);
    if (status != TRTKP_OK)
    {
        return report(status);
    }
    std::printf("tactics:");
    for (int32_t i = 0; i < count; ++i)
    {
        std::printf(" %s", trtkpTacticName(tactics[i]));
    }
    int32_t listBlock = 0;
    status = index == nullptr || argc > 3 ? TRTKP_OK
                                          : trtkpConvCheckLists(&header.desc, index, rowGroup, rowFilter, &listBlock);
    auto const* const metadata = static_cast<int32_t const*>(tensors[7]);
    status = status != TRTKP_OK || metadata == nullptr || argc > 3 ? status
                                                                   : trtkpConvCheckMetadata(&header.desc, metadata);
    std::printf("\nlistBlock: %d\n", listBlock);
    if (status != TRTKP_OK)
    {
        return report(status);
    }
    if (argc > 2)
    {
        size_t const bytes = header.sizes[kTensors];
        void* const y = std::malloc(bytes);
        std::memset(y, 0xff, bytes); // NaN: an element that is never written shows
        size_t workspaceBytes = 0;
        status = trtkpConvWorkspaceBytes(&header.desc, header.tactic, &workspaceBytes);
        void* const workspace = workspaceBytes == 0 ? nullptr : std::malloc(workspaceBytes);
        if (workspace != nullptr)
        {
            std::memset(workspace, 0xff, workspaceBytes);
        }
        trtkpConvTensors const arguments{sizeof(trtkpConvTensors), 0, tensors[0], tensors[1], index, rowGroup,
            rowFilter, tensors[5], tensors[6], y, workspace, workspaceBytes, metadata};
        status = status != TRTKP_OK ? status : trtkpConvLaunch(&header.desc, header.tactic, &arguments, nullptr);
        if (status == TRTKP_OK)
        {
            std::ofstream{argv[2], std::ios::binary}.write(static_cast<char const*>(y), bytes);
        }
        std::free(workspace);
        std::free(y);
    }
    for (void* const tensor : tensors)
    {
        std::free(tensor);
    }
    return status == TRTKP_OK ? 0 : report(status);
}

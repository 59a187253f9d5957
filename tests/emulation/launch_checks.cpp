// Launches a small layer through the C interface with one argument spoilt: launch_checks prints a line per spoilt
// argument, "name: status message". test_interface.py knows what to expect.

#include "emulator.h"

#include "../../plugins/capi/trtkp.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <iterator>
#include <thread>
#include <utility>
#include <vector>

namespace
{

// A 1x1 convolution of 8 channels to 8 filters on 2 x 2 pixels, fp16, with bias and residual.
struct Layer
{
    trtkpConvDesc desc{};
    trtkpConvTensors tensors{};
    int32_t tactic = TRTKP_TACTIC_MMA_64X32;
};

alignas(16) uint16_t gX[512], gWeight[1024], gBias[8], gResidual[32], gY[32];
alignas(16) float gWorkspace[1024];
alignas(16) int32_t gMetadata[64];
alignas(16) int32_t gIndex[128] = {0, 1, 2, 3, 4, 5, 6, 7};
alignas(16) int32_t gRowGroup[8] = {};
alignas(16) int32_t gRowFilter[8] = {0, 1, 2, 3, 4, 5, 6, 7};

Layer good()
{
    Layer layer;
    trtkpConvDesc& desc = layer.desc;
    desc.structSize = sizeof(desc);
    desc.interfaceVersion = TRTKP_INTERFACE_VERSION;
    desc.dataType = TRTKP_FLOAT16;
    desc.batch = desc.kernelRows = desc.kernelColumns = desc.strideH = desc.strideW = 1;
    desc.dilationH = desc.dilationW = desc.groups = desc.listGroups = 1;
    desc.height = desc.width = 2;
    desc.channels = desc.filters = desc.listLength = desc.rows = desc.listBlock = 8;
    desc.xPitch = desc.yPitch = desc.residualPitch = 8;
    desc.hasBias = desc.hasResidual = 1;
    layer.tensors = {sizeof(trtkpConvTensors), 0, gX, gWeight, gIndex, gRowGroup, gRowFilter, gBias, gResidual, gY,
        nullptr, 0, nullptr};
    return layer;
}

void makeLong(Layer& layer)
{
    layer.desc.channels = layer.desc.listLength = layer.desc.xPitch = 128;
    layer.tactic = TRTKP_TACTIC_MMA_64X64_SPLIT4;
    layer.tensors.workspace = gWorkspace;
    layer.tensors.workspaceBytes = sizeof(gWorkspace);
}

void makeSparse(Layer& layer)
{
    layer.desc.twoFour = 1;
    layer.tactic = TRTKP_TACTIC_SPARSE_64X64;
    layer.tensors.metadata = gMetadata;
}

template <typename T>
T const* moved(T const* pointer, int bytes)
{
    return reinterpret_cast<T const*>(reinterpret_cast<uintptr_t>(pointer) + bytes);
}

std::vector<std::pair<char const*, std::function<void(Layer&)>>> const kSpoilt{
    {"nothing", [](Layer&) {}},
    {"x null", [](Layer& l) { l.tensors.x = nullptr; }},
    {"weight null", [](Layer& l) { l.tensors.weight = nullptr; }},
    {"index null", [](Layer& l) { l.tensors.index = nullptr; }},
    {"rowGroup null", [](Layer& l) { l.tensors.rowGroup = nullptr; }},
    {"rowFilter null", [](Layer& l) { l.tensors.rowFilter = nullptr; }},
    {"bias null", [](Layer& l) { l.tensors.bias = nullptr; }},
    {"residual null", [](Layer& l) { l.tensors.residual = nullptr; }},
    {"y null", [](Layer& l) { l.tensors.y = nullptr; }},
    {"bias not described", [](Layer& l) { l.desc.hasBias = 0; }},
    {"x misaligned", [](Layer& l) { l.tensors.x = moved(gX, 2); }},
    {"weight misaligned", [](Layer& l) { l.tensors.weight = moved(gWeight, 8); }},
    {"y misaligned", [](Layer& l) { l.tensors.y = gY + 1; }},
    {"index misaligned", [](Layer& l) { l.tensors.index = moved(gIndex, 2); }},
    {"y on x", [](Layer& l) { l.tensors.y = gX; }},
    {"y on residual", [](Layer& l) { l.tensors.residual = gY; }},
    {"y in weight", [](Layer& l) { l.tensors.y = gWeight + 32; }},
    {"y on index", [](Layer& l) { l.tensors.y = gIndex; }},
    {"y on rowGroup", [](Layer& l) { l.tensors.y = gRowGroup; }},
    {"y on rowFilter", [](Layer& l) { l.tensors.y = gRowFilter; }},
    {"workspace given", makeLong},
    {"workspace null",
        [](Layer& l)
        {
            makeLong(l);
            l.tensors.workspace = nullptr;
        }},
    {"workspace short",
        [](Layer& l)
        {
            makeLong(l);
            --l.tensors.workspaceBytes;
        }},
    {"y in workspace",
        [](Layer& l)
        {
            makeLong(l);
            l.tensors.y = gWorkspace + 16;
        }},
    {"metadata given", makeSparse},
    {"metadata null",
        [](Layer& l)
        {
            makeSparse(l);
            l.tensors.metadata = nullptr;
        }},
    {"metadata misaligned",
        [](Layer& l)
        {
            makeSparse(l);
            l.tensors.metadata = gMetadata + 1;
        }},
    {"y on metadata",
        [](Layer& l)
        {
            makeSparse(l);
            l.tensors.y = gMetadata;
        }},
    {"metadata not described", [](Layer& l) { l.tensors.metadata = gMetadata; }},
    {"2:4 weights for T1",
        [](Layer& l)
        {
            makeSparse(l);
            l.tactic = TRTKP_TACTIC_MMA_64X32;
        }},
    {"dense weights for T4", [](Layer& l) { l.tactic = TRTKP_TACTIC_SPARSE_64X64; }},
    {"tensors size", [](Layer& l) { l.tensors.structSize = 8; }},
    {"tactic negative", [](Layer& l) { l.tactic = -1; }},
    {"tactic unknown", [](Layer& l) { l.tactic = TRTKP_TACTIC_COUNT; }},
    {"tactic gap", [](Layer& l) { l.tactic = TRTKP_TACTIC_SPARSE_128X128 - 1; }},
    {"tactic unfit", [](Layer& l) { l.desc.listBlock = 1; }},
};

} // namespace

int main()
{
    std::fill(std::begin(gMetadata), std::end(gMetadata), 0x44444444);
    int launchedInVain = 0;
    for (auto const& [name, spoil] : kSpoilt)
    {
        Layer layer = good();
        spoil(layer);
        int const before = emulation::launches();
        trtkpStatus const status = trtkpConvLaunch(&layer.desc, layer.tactic, &layer.tensors, nullptr);
        std::printf("%s: %d %s\n", name, status, status == TRTKP_OK ? "" : trtkpLastError());
        launchedInVain += status == TRTKP_OK ? 0 : emulation::launches() - before;
    }
    // As on a GPU that the library holds no kernels for: a tile asks for its shared memory first, the reference
    // launches.
    emulation::refuseKernels(cudaErrorNoKernelImageForDevice);
    for (int32_t const tactic : {TRTKP_TACTIC_MMA_64X32, TRTKP_TACTIC_REFERENCE})
    {
        Layer const layer = good();
        trtkpStatus const status = trtkpConvLaunch(&layer.desc, tactic, &layer.tensors, nullptr);
        std::printf("other architecture, %s: %d %s\n", trtkpTacticName(tactic), status, trtkpLastError());
    }
    emulation::refuseKernels(cudaSuccess);
    std::printf("launched in vain: 0 %d\n", launchedInVain);

    Layer const layer = good();
    std::printf("desc null: %d %s\n", trtkpConvLaunch(nullptr, 0, &layer.tensors, nullptr), trtkpLastError());
    std::printf("tensors null: %d %s\n", trtkpConvLaunch(&layer.desc, 0, nullptr, nullptr), trtkpLastError());
    std::thread{[] { std::printf("other thread: 0 [%s]\n", trtkpLastError()); }}.join();

    size_t bytes = 1;
    int32_t height = 0;
    int32_t width = 0;
    Layer longer = good();
    makeLong(longer);
    trtkpConvWorkspaceBytes(&longer.desc, longer.tactic, &bytes);
    trtkpConvOutputSize(&layer.desc, &height, &width);
    std::printf("workspace: 0 %zu\noutput: 0 %dx%d\nversion: 0 %u\nname: 0 %s\n", bytes, height, width,
        trtkpInterfaceVersion(), trtkpTacticName(TRTKP_TACTIC_COUNT) == nullptr ? "none" : "some");
    return 0;
}

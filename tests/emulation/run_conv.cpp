// Runs one case through the C interface: run_conv CASE OUTPUT.
//
// CASE (case_file.h) has the tensors x, weight, index, rowGroup, rowFilter, bias, residual and metadata. Without OUTPUT
// nothing is launched; a third argument leaves the lists unchecked. Prints the tactics and the block of the lists; ends
// with the status.

#include "case_file.h"

namespace
{

int32_t const* integers(void const* tensor)
{
    return static_cast<int32_t const*>(tensor);
}

} // namespace

int main(int argc, char** argv)
{
    emulation::Case<trtkpConvDesc, 8> given;
    if (argc < 2 || !given.read(argv[1]))
    {
        std::fprintf(stderr, "usage: run_conv CASE [OUTPUT]\n");
        return emulation::kFailureStatus;
    }
    auto const& [desc, tactic, seed, sizes] = given.header;
    emulation::setSeed(seed);

    int32_t tactics[TRTKP_TACTIC_COUNT];
    int32_t count = 0;
    trtkpStatus status = trtkpConvTactics(&desc, tactics, TRTKP_TACTIC_COUNT, &count);
    if (status != TRTKP_OK)
    {
        return emulation::report(status);
    }
    std::printf("tactics:");
    for (int32_t i = 0; i < count; ++i)
    {
        std::printf(" %s", trtkpTacticName(tactics[i]));
    }

    trtkpConvTensors tensors{sizeof(trtkpConvTensors), 0, given.at(0), given.at(1), integers(given.at(2)),
        integers(given.at(3)), integers(given.at(4)), given.at(5), given.at(6), nullptr, nullptr, 0,
        integers(given.at(7))};
    int32_t listBlock = 0;
    bool const isChecked = argc <= 3;
    if (isChecked && tensors.index != nullptr)
    {
        status = trtkpConvCheckLists(&desc, tensors.index, tensors.rowGroup, tensors.rowFilter, &listBlock);
    }
    if (isChecked && tensors.metadata != nullptr && status == TRTKP_OK)
    {
        status = trtkpConvCheckMetadata(&desc, tensors.metadata);
    }
    std::printf("\nlistBlock: %d\n", listBlock);
    if (status != TRTKP_OK || argc < 3)
    {
        return emulation::report(status);
    }

    status = trtkpConvWorkspaceBytes(&desc, tactic, &tensors.workspaceBytes);
    emulation::Memory workspace = emulation::notANumber(tensors.workspaceBytes);
    emulation::Memory y = emulation::notANumber(given.outputBytes());
    tensors.workspace = workspace.empty() ? nullptr : workspace.data();
    tensors.y = y.data();
    status = status != TRTKP_OK ? status : trtkpConvLaunch(&desc, tactic, &tensors, nullptr);
    if (status == TRTKP_OK)
    {
        emulation::write(argv[2], y);
    }
    return emulation::report(status);
}

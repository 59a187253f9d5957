// Runs one dynamic pattern convolution through the C interface: run_dynamic CASE OUTPUT [SPOILT TENSOR].
//
// CASE (case_file.h) has the tensors x, weight, attention, index, bias and residual. SPOILT spoils a pointer before the
// launch: "null", "misaligned" or "y" (y begins in the tensor), by the number of the tensor (6: y, 7: workspace; "short
// 7" gives too little workspace). Prints the tactics; ends with the status.

#include "case_file.h"

#include <cstdlib>
#include <string>

namespace
{

int constexpr kTensors = 6;

// What a launch is given: the tensors of the case, y and the workspace.
struct Given
{
    void* tensors[kTensors + 2];
    size_t workspaceBytes;
};

void spoil(Given& given, std::string const& how, int number)
{
    void*& tensor = given.tensors[number];
    if (how == "null")
    {
        tensor = nullptr;
    }
    else if (how == "misaligned")
    {
        tensor = static_cast<char*>(tensor) + 2;
    }
    else if (how == "y")
    {
        given.tensors[kTensors] = tensor;
    }
    else if (how == "short")
    {
        --given.workspaceBytes;
    }
}

} // namespace

int main(int argc, char** argv)
{
    emulation::Case<trtkpDynamicDesc, kTensors> read;
    if (argc < 3 || !read.read(argv[1]))
    {
        std::fprintf(stderr, "usage: run_dynamic CASE OUTPUT [SPOILT TENSOR]\n");
        return emulation::kFailureStatus;
    }
    auto const& [desc, tactic, seed, sizes] = read.header;
    emulation::setSeed(seed);
    int32_t tactics[TRTKP_TACTIC_COUNT];
    int32_t count = 0;
    Given given{};
    trtkpStatus status = trtkpDynamicTactics(&desc, tactics, TRTKP_TACTIC_COUNT, &count);
    for (int32_t i = 0; i < count; ++i)
    {
        std::printf("%s\n", trtkpTacticName(tactics[i]));
    }
    status = status != TRTKP_OK ? status : trtkpDynamicWorkspaceBytes(&desc, tactic, &given.workspaceBytes);
    if (status != TRTKP_OK)
    {
        return emulation::report(status);
    }

    emulation::Memory y = emulation::notANumber(read.outputBytes());
    emulation::Memory workspace = emulation::notANumber(given.workspaceBytes);
    for (int i = 0; i < kTensors; ++i)
    {
        given.tensors[i] = read.at(i);
    }
    given.tensors[kTensors] = y.data();
    given.tensors[kTensors + 1] = workspace.data();
    if (argc > 4)
    {
        spoil(given, argv[3], std::atoi(argv[4]));
    }
    void* const* const t = given.tensors;
    trtkpDynamicTensors const tensors{sizeof(trtkpDynamicTensors), 0, t[0], t[1], t[2],
        static_cast<int32_t const*>(t[3]), t[4], t[5], t[6], t[7], given.workspaceBytes};
    status = trtkpDynamicLaunch(&desc, tactic, &tensors, nullptr);
    if (status == TRTKP_OK)
    {
        emulation::write(argv[2], y);
    }
    return emulation::report(status);
}

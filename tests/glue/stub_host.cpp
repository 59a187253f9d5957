// Plays TensorRT's part with launchers that launch nothing: stub_host COMMAND CASE.
//
// threads: several threads, each with a context of its own, make every call at once.
//
// calls: prints the tactics that are offered and their workspace ("offered NUMBER", "workspace BYTES"), what each
// launches at the least, the typical and the greatest batch of the profile ("launched NUMBER BATCH LAUNCHER SPLITS"),
// and what the calls cost the host: "onShapeChange NANOSECONDS", "enqueue NANOSECONDS ALLOCATIONS". Times are medians.

#include "../../plugins/glue/entry.h"
#include "calls.h"
#include "case.h"
#include "check.h"
#include "launch_stubs.h"
#include "played_context.h"
#include "played_registry.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <thread>
#include <vector>

namespace
{

using namespace nvinfer1;
using namespace host;

int constexpr kRuns = 2001;

std::atomic<int64_t> gAllocations{0};

Finder11 gFinder;

template <typename Call>
int64_t medianNanoseconds(Call const& call)
{
    std::vector<int64_t> times(kRuns);
    for (int run = 0; run < kRuns; ++run)
    {
        auto const start = std::chrono::steady_clock::now();
        call(run);
        auto const end = std::chrono::steady_clock::now();
        times[run] = std::chrono::duration_cast<std::chrono::nanoseconds>(end - start).count();
    }
    std::nth_element(times.begin(), times.begin() + kRuns / 2, times.end());
    return times[kRuns / 2];
}

IPluginCreatorV3One& creatorOf(std::string const& name)
{
    int32_t count = 0;
    IPluginCreatorInterface* const* const all = getCreators(count);
    auto* const* const found = std::find_if(
        all, all + count, [&](auto* each) { return name == static_cast<IPluginCreatorV3One*>(each)->getPluginName(); });
    expect(found != all + count, "no creator " + name);
    return *static_cast<IPluginCreatorV3One*>(*found);
}

} // namespace

void* operator new(size_t size)
{
    ++gAllocations;
    void* const memory = std::malloc(size);
    return memory != nullptr ? memory : throw std::bad_alloc{};
}

void operator delete(void* memory) noexcept
{
    std::free(memory);
}

void operator delete(void* memory, size_t) noexcept
{
    std::free(memory);
}

namespace
{

int calls(Case& given)
{
    std::unique_ptr<IPluginV3> const plugin{
        creatorOf(given.op).createPlugin("node", given.fields.collection(), TensorRTPhase::kBUILD)};
    expect(plugin != nullptr, "no plugin");
    auto& build = capability<IPluginV3OneBuild>(*plugin, PluginCapabilityType::kBUILD);
    auto& runtime = capability<IPluginV3OneRuntime>(*plugin, PluginCapabilityType::kRUNTIME);
    auto profile = negotiated(build, given);
    auto const inputs = static_cast<int32_t>(profile.size()) - 1;
    int64_t const most = given.tensors.front().dims.d[0];
    widen(profile, given, given.least, given.typical, most);
    expect(build.configurePlugin(profile.data(), inputs, &profile.back(), 1) == 0, "configurePlugin");
    auto const tactics = tacticsOf(build);
    size_t const workspaceBytes = build.getWorkspaceSize(profile.data(), inputs, &profile.back(), 1);
    std::printf("workspace %zu\n", workspaceBytes);

    std::vector<Memory> memory;
    std::vector<void const*> pointers;
    for (Tensor const& tensor : given.tensors)
    {
        memory.emplace_back(tensor.bytes);
        pointers.push_back(memory.back().at);
    }
    Memory const workspace{workspaceBytes};
    void* const y = memory.back().at;
    auto const enqueue = [&](std::vector<PluginTensorDesc> const& all)
    { return runtime.enqueue(all.data(), &all.back(), pointers.data(), &y, workspace.at, nullptr); };

    for (int32_t const tactic : tactics)
    {
        std::printf("offered %d\n", tactic);
        expect(runtime.setTactic(tactic) == 0, "setTactic");
        for (int64_t const batch : {given.least, given.typical, most})
        {
            expect(enqueue(atBatch(profile, given, batch)) == 0, "enqueue");
            std::printf("launched %d %ld %s %d\n", tactic, static_cast<long>(batch), gLaunch.launcher, gLaunch.splits);
        }
    }

    std::vector<PluginTensorDesc> const shapes[]{atBatch(profile, given, given.least), atBatch(profile, given, most)};
    int64_t const changed = medianNanoseconds(
        [&](int run)
        {
            auto const& all = shapes[run % 2];
            expect(runtime.onShapeChange(all.data(), inputs, &all.back(), 1) == 0, "onShapeChange");
        });
    expect(enqueue(shapes[0]) == 0, "enqueue");
    int64_t const before = gAllocations;
    for (int run = 0; run < kRuns; ++run)
    {
        expect(enqueue(shapes[run / 100 % 2]) == 0, "enqueue"); // of other shapes, too
    }
    int64_t const allocations = gAllocations - before;
    int64_t const enqueued = medianNanoseconds([&](int) { expect(enqueue(shapes[0]) == 0, "enqueue"); });
    std::printf("onShapeChange %ld\nenqueue %ld %ld\n", static_cast<long>(changed), static_cast<long>(enqueued),
        static_cast<long>(allocations));
    return 0;
}

// What a context's thread does: shapes, tactics, launches, a mistake, an engine, a finder.
void useContext(Case const& given, IPluginV3& plugin, std::vector<DynamicPluginTensorDesc> const& profile, int thread)
{
    int constexpr kRounds = 50;
    Context context;
    auto& own = capability<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME);
    std::unique_ptr<IPluginV3> const attached{own.attachToContext(&context)};
    auto& runtime = capability<IPluginV3OneRuntime>(*attached, PluginCapabilityType::kRUNTIME);
    auto const inputs = static_cast<int32_t>(profile.size()) - 1;
    std::vector<Memory> memory;
    std::vector<void const*> pointers;
    for (Tensor const& tensor : given.tensors)
    {
        memory.emplace_back(tensor.bytes);
        pointers.push_back(memory.back().at);
    }
    void* const y = memory.back().at;
    for (int round = 0; round < kRounds; ++round)
    {
        auto all = atBatch(profile, given, 1 + (round + thread) % given.tensors.front().dims.d[0]);
        expect(runtime.setTactic(1 + (round + thread) % 4) == 0, "setTactic");
        expect(runtime.onShapeChange(all.data(), inputs, &all.back(), 1) == 0, "onShapeChange");
        expect(runtime.enqueue(all.data(), &all.back(), pointers.data(), &y, nullptr, nullptr) == 0, "enqueue");
        all[1].dims.d[0] += 1;
        expect(runtime.onShapeChange(all.data(), inputs, &all.back(), 1) != 0, "a wrong shape");
        setLoggerFinder(&static_cast<trtkp::glue::v11::LoggerFinder&>(gFinder));
        Fields engine{*runtime.getFieldsToSerialize()};
        std::unique_ptr<IPluginV3> const loaded{
            creatorOf(given.op).createPlugin("node", engine.collection(), TensorRTPhase::kRUNTIME)};
        expect(loaded != nullptr, "no plugin of an engine");
    }
}

int threads(Case& given)
{
    int constexpr kThreads = 4;
    expect(trtkpRegisterPlugins() == 1, "trtkpRegisterPlugins");
    std::unique_ptr<IPluginV3> const plugin{
        creatorOf(given.op).createPlugin("node", given.fields.collection(), TensorRTPhase::kBUILD)};
    expect(plugin != nullptr, "no plugin");
    auto profile = negotiated(capability<IPluginV3OneBuild>(*plugin, PluginCapabilityType::kBUILD), given);
    widen(profile, given, given.least, given.typical, given.tensors.front().dims.d[0]);
    std::vector<std::thread> all;
    for (int thread = 0; thread < kThreads; ++thread)
    {
        all.emplace_back([&, thread] { useContext(given, *plugin, profile, thread); });
    }
    for (std::thread& thread : all)
    {
        thread.join();
    }
    std::printf("threads done\n");
    return 0;
}

} // namespace

int main(int argc, char** argv)
{
    expect(argc == 3, "usage: stub_host COMMAND CASE");
    Case given;
    readCase(argv[2], given);
    return std::string{argv[1]} == "threads" ? threads(given) : calls(given);
}

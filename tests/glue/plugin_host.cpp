// Plays TensorRT's part for the plugins over emulated kernels: plugin_host COMMAND CASE [OUTPUT].
//
// CASE is a file that case.h describes. The bytes of the inputs stand in CASE.bin.
//
//   create    creates the plugin and says whether it was refused
//   run       build phase, engine, runtime phase; writes OUTPUT.TACTIC for every tactic
//   orders    plays random legal orders of calls with the seeds [FIRST, LAST): plugin_host orders CASE FIRST LAST
//   register  registers the plugins twice and prints the creators
//
// With TRTKP_LIVE it is another program, which plays with the registry of a real TensorRT:
// plugin_host COMMAND CASE OUTPUT TENSORRT LIBRARY, the library being libtrtkp.so or libtrtkp_register.so.
//
// What the plugins log is printed as "log SEVERITY MESSAGE", what they report to a recorder as "recorded MESSAGE".

#include "../../plugins/glue/entry.h"
#include "../../plugins/glue/host.h"
#include "calls.h"
#include "case.h"
#include "check.h"
#include "played_context.h"

#ifndef TRTKP_LIVE
#include "emulator.h"
#include "orders.h"
#include "played_registry.h"
#endif

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <fstream>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

namespace
{

using namespace nvinfer1;
using namespace host;
namespace glue = trtkp::glue;

#ifdef TRTKP_LIVE
// Calls every function of the registry's layout that can be called and answers something. The library may be of a
// version whose headers nobody has, so that this is the check of the layout.
template <typename Registry>
void checkLayout(Registry& registry)
{
    static Recorder recorder;
    registry.setErrorRecorder(&recorder);
    expect(registry.getErrorRecorder() == &recorder, "get or setErrorRecorder");
    for (bool const enabled : {false, true})
    {
        registry.setParentSearchEnabled(enabled);
        expect(registry.isParentSearchEnabled() == enabled, "get or setParentSearchEnabled");
    }
    int32_t count = 0;
    IPluginCreatorInterface* const* const all = registry.getAllCreators(&count);
    auto const* const relu = registry.getCreator("StripeConvRelu", "1", "trtkp");
    expect(relu != nullptr && std::find(all, all + count, relu) != all + count, "getCreator or getAllCreators");
    expect(registry.getCreator("StripeConvRelu", "2", "trtkp") == nullptr, "getCreator");
    static struct Named final : IPluginCreatorV3One
    {
        IPluginV3* createPlugin(AsciiChar const*, PluginFieldCollection const*, TensorRTPhase) noexcept override
        {
            return nullptr;
        }
        PluginFieldCollection const* getFieldNames() noexcept override
        {
            return &fields;
        }
        AsciiChar const* getPluginName() const noexcept override
        {
            return "Named";
        }
        AsciiChar const* getPluginVersion() const noexcept override
        {
            return "7";
        }
        AsciiChar const* getPluginNamespace() const noexcept override
        {
            return "space";
        }
        PluginFieldCollection fields{};
    } named;
    expect(registry.registerCreator(named, "space"), "registerCreator");
    expect(registry.getCreator("Named", "7", "space") == &named, "the registered creator");
    registry.setErrorRecorder(nullptr);
    std::printf("layout checked\n");
}

// A library is loaded as hosts do: by the registry, or by dlopen where it registers itself.
template <typename Registry>
IPluginCreatorInterface* liveCreator(void* registry, char const* library, char const* name)
{
    auto& live = *static_cast<Registry*>(registry);
    static bool const isLoaded = std::strstr(library, "register") == nullptr
        ? live.loadLibrary(library) != nullptr
        : dlopen(library, RTLD_NOW | RTLD_LOCAL) != nullptr;
    expect(isLoaded, "the library is not loaded");
    static std::once_flag isChecked;
    std::call_once(isChecked,
        [&]
        {
            if (live.getCreator("StripeConvRelu", "1", "trtkp") != nullptr)
            {
                checkLayout(live);
            }
        });
    return live.getCreator(name, "1", "trtkp");
}

char const* gLibrary = nullptr;

#endif

IPluginCreatorV3One& creatorOf(std::string const& name)
{
#ifdef TRTKP_LIVE
    auto const hosts = glue::hosts();
    expect(hosts.size() == 1, "not one TensorRT in the process");
    void* const registry = hosts.front()->registry();
    auto* const found = hosts.front()->isV11() ? liveCreator<glue::v11::Registry>(registry, gLibrary, name.c_str())
                                               : liveCreator<glue::v10::Registry>(registry, gLibrary, name.c_str());
    expect(found != nullptr, "no creator " + name);
    return *static_cast<IPluginCreatorV3One*>(found);
#else
    int32_t count = 0;
    IPluginCreatorInterface* const* const all = getCreators(count);
    for (int32_t i = 0; i < count; ++i)
    {
        expect(std::string{all[i]->getInterfaceInfo().kind} == "PLUGIN CREATOR_V3ONE", "another kind of creator");
        auto* const creator = static_cast<IPluginCreatorV3One*>(all[i]);
        if (name == creator->getPluginName())
        {
            return *creator;
        }
    }
    die("no creator " + name);
#endif
}

int create(Case& given)
{
    std::unique_ptr<IPluginV3> const plugin{creatorOf(given.op).createPlugin(
        "node", given.spoilt == "collection" ? nullptr : given.fields.collection(), given.phase)};
    std::printf(plugin == nullptr ? "refused\n" : "created\n");
    return 0;
}

void checkTypesAndShapes(IPluginV3OneBuild& build, Case const& given, std::vector<DynamicPluginTensorDesc> const& all)
{
    auto const inputs = static_cast<int32_t>(all.size()) - 1;
    std::vector<DataType> types;
    for (int32_t i = 0; i < inputs; ++i)
    {
        types.push_back(all[i].desc.type);
    }
    DataType type{};
    expect(build.getOutputDataTypes(&type, 1, types.data(), inputs) == 0 && type == given.type, "data type of Y");

    Builder builder;
    std::vector<DimsExprs> shapes(inputs);
    for (int32_t i = 0; i < inputs; ++i)
    {
        shapes[i].nbDims = given.tensors[i].dims.nbDims;
        for (int32_t axis = 0; axis < shapes[i].nbDims; ++axis)
        {
            shapes[i].d[axis] = static_cast<apiv::VExprBuilder&>(builder).constant(given.tensors[i].dims.d[axis]);
        }
    }
    DimsExprs shape{};
    expect(build.getOutputShapes(shapes.data(), inputs, nullptr, 0, &shape, 1, builder) == 0, "shape of Y");
    Dims const& want = given.tensors.back().dims;
    expect(shape.nbDims == want.nbDims, "rank of Y");
    for (int32_t axis = 0; axis < want.nbDims; ++axis)
    {
        expect(shape.d[axis]->getConstantValue() == want.d[axis], "size of Y along " + std::to_string(axis));
    }
}

int run(Case& given, std::string const& path, std::string const& output)
{
    // Build phase.
    IPluginCreatorV3One& creator = creatorOf(given.op);
    std::unique_ptr<IPluginV3> first{creator.createPlugin("node", given.fields.collection(), TensorRTPhase::kBUILD)};
    expect(first != nullptr, "no plugin");
    expect(first->getCapabilityInterface(static_cast<PluginCapabilityType>(9)) == nullptr, "a capability 9");
    std::unique_ptr<IPluginV3> plugin{first->clone()};
    first.reset();
    auto& build = capability<IPluginV3OneBuild>(*plugin, PluginCapabilityType::kBUILD);
    auto& core = capability<IPluginV3OneCore>(*plugin, PluginCapabilityType::kCORE);
    expect(given.op == core.getPluginName(), "name");
    expect(build.getNbOutputs() == 1, "outputs");
    auto all = negotiated(build, given);
    for (auto const& tensor : all)
    {
        std::printf("form %d %d\n", static_cast<int>(tensor.desc.type), static_cast<int>(tensor.desc.format));
    }
    auto const inputs = static_cast<int32_t>(all.size()) - 1;
    checkTypesAndShapes(build, given, all);
    std::vector<PluginTensorDesc> fixed;
    for (auto const& tensor : all)
    {
        fixed.push_back(tensor.desc);
    }
    int64_t const batch = given.tensors.front().dims.d[0];
    widen(all, given, given.least, std::max<int64_t>(given.least, batch / 2), batch);
    if (given.spoilt == "weight")
    {
        all[1].min.d[1] = all[1].max.d[1] = all[1].opt.d[1] = fixed[1].dims.d[1] + 1;
    }
    if (build.configurePlugin(all.data(), inputs, &all.back(), 1) != 0)
    {
        std::printf("not configured\n");
        return 0;
    }
    auto const tactics = tacticsOf(build);
    for (int32_t const tactic : tactics)
    {
        std::printf("offered %d\n", tactic);
    }
    size_t const workspaceBytes = build.getWorkspaceSize(all.data(), inputs, &all.back(), 1);
    std::printf(
        "timing %s\nmetadata %s\nworkspace %zu\n", build.getTimingCacheID(), build.getMetadataString(), workspaceBytes);

    // Engine: only the fields are kept.
    Fields kept{*capability<IPluginV3OneRuntime>(*plugin, PluginCapabilityType::kRUNTIME).getFieldsToSerialize()};
    plugin.reset();
    plugin.reset(creator.createPlugin("node", kept.collection(), TensorRTPhase::kRUNTIME));
    expect(plugin != nullptr, "no plugin in the runtime phase");

    // Runtime phase: two contexts of one engine, the second is used.
    Context context;
    auto& runtime = capability<IPluginV3OneRuntime>(*plugin, PluginCapabilityType::kRUNTIME);
    std::unique_ptr<IPluginV3> const other{runtime.attachToContext(&context)};
    std::unique_ptr<IPluginV3> const attached{runtime.attachToContext(&context)};
    plugin.reset();
    auto& used = capability<IPluginV3OneRuntime>(*attached, PluginCapabilityType::kRUNTIME);
    std::ifstream data{path + ".bin", std::ios::binary};
    std::vector<Memory> memory;
    std::vector<void const*> pointers;
    for (int32_t i = 0; i < inputs; ++i)
    {
        memory.emplace_back(given.tensors[i].bytes);
        data.read(static_cast<char*>(memory.back().at), static_cast<std::streamsize>(given.tensors[i].bytes));
        pointers.push_back(memory.back().at);
    }
    Memory const workspace{workspaceBytes};
    if (given.spoilt == "stop")
    {
        return 0;
    }
    if (given.spoilt == "tactic")
    {
        std::printf("setTactic %d %d\n", used.setTactic(1000), used.setTactic(-1));
        return 0;
    }
    if (given.spoilt == "bias")
    {
        fixed[given.op.rfind("Dynamic", 0) == 0 ? 4 : 5].dims.d[0] += 1;
    }
    std::vector<int32_t> chosen = tactics;
    chosen.push_back(0); // the default
    for (int32_t const tactic : chosen)
    {
        expect(used.setTactic(tactic) == 0, "setTactic");
        if (used.onShapeChange(fixed.data(), inputs, &fixed.back(), 1) != 0)
        {
            std::printf("shape refused\n");
            return 0;
        }
        Memory const y{given.tensors.back().bytes};
        int32_t const status = used.enqueue(fixed.data(), &fixed.back(), pointers.data(), &y.at, workspace.at, nullptr);
        expect(status == 0, "enqueue");
        std::printf("tactic %d\n", tactic);
        std::ofstream{output + "." + std::to_string(tactic), std::ios::binary}.write(
            static_cast<char const*>(y.at), static_cast<std::streamsize>(given.tensors.back().bytes));
    }
    return 0;
}

#ifndef TRTKP_LIVE
int registerTwice()
{
    for (int i = 0; i < 2; ++i)
    {
        int32_t const registries = trtkpRegisterPlugins();
        std::printf("registries %d, creators %zu, refused %d\n", registries, gCreators.all.size(), gCreators.refused);
    }
    for (auto* const each : gCreators.all)
    {
        auto* const creator = static_cast<IPluginCreatorV3One*>(each);
        std::printf("creator %s:", creator->getPluginName());
        PluginFieldCollection const* const fields = creator->getFieldNames();
        for (int32_t i = 0; i < fields->nbFields; ++i)
        {
            auto const& field = fields->fields[i];
            std::printf(" %s/%d/%d", field.name, static_cast<int>(field.type), field.length);
        }
        std::printf("\n");
    }
    return 0;
}
#endif

} // namespace

int main(int argc, char** argv)
{
    expect(argc >= 3, "usage: plugin_host COMMAND CASE [OUTPUT]");
    std::string const command = argv[1];
    Case given;
    readCase(argv[2], given);
#ifdef TRTKP_LIVE
    expect(argc == 6 && dlopen(argv[4], RTLD_NOW | RTLD_LOCAL) != nullptr, "no TensorRT");
    gLibrary = argv[5];
    return command == "create" ? create(given) : run(given, argv[2], argv[3]);
#else
    emulation::setSeed(1);
    emulation::setCapability(given.capability);
    gVersion = given.version;
    Finder10 finder10;
    Finder11 finder11;
    if (given.spoilt == "finder")
    {
        setLoggerFinder(isV10() ? static_cast<void*>(static_cast<glue::v10::LoggerFinder*>(&finder10))
                                : static_cast<glue::v11::LoggerFinder*>(&finder11));
    }
    if (command == "create")
    {
        return create(given);
    }
    if (command == "orders")
    {
        expect(argc == 5, "usage: plugin_host orders CASE FIRST LAST");
        return playOrders(creatorOf(given.op), given, argv[2], std::stoi(argv[3]), std::stoi(argv[4]));
    }
    return command == "run" ? run(given, argv[2], argc > 3 ? argv[3] : "") : registerTwice();
#endif
}

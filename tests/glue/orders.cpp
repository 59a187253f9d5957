#include "orders.h"

#include "calls.h"
#include "played_context.h"

#include <cuda_bf16.h>

#include <cmath>
#include <memory>
#include <random>
#include <utility>

namespace host
{
namespace
{

// A profile and what a build has chosen for it.
struct Profile
{
    std::vector<DynamicPluginTensorDesc> tensors;
    int32_t tactic{0};
};

class Player
{
public:
    Player(IPluginCreatorV3One& creator, Case const& given, std::string const& path, int seed)
        : mCreator{creator}
        , mGiven{given}
        , mSeed{seed}
        , mRandom{static_cast<uint32_t>(seed)}
        , mInputs{static_cast<int32_t>(given.tensors.size()) - 1}
        , mBatch{given.tensors.front().dims.d[0]}
    {
        std::ifstream data{path + ".bin", std::ios::binary};
        for (int32_t i = 0; i < mInputs; ++i)
        {
            mData.emplace_back(given.tensors[i].bytes);
            data.read(mData.back().data(), static_cast<std::streamsize>(given.tensors[i].bytes));
        }
        std::ifstream want{path + ".want", std::ios::binary};
        Dims const& y = given.tensors.back().dims;
        mWant.resize(y.d[0] * y.d[1] * y.d[2] * y.d[3]);
        want.read(reinterpret_cast<char*>(mWant.data()), static_cast<std::streamsize>(mWant.size() * sizeof(double)));
        expect(data.good() && want.good(), "the case's data are not there");
    }

    int play()
    {
        build();
        for (int64_t sessions = upTo(1); sessions >= 0; --sessions)
        {
            serve();
        }
        return mCalls;
    }

private:
    // A number in [0, most].
    int64_t upTo(int64_t most)
    {
        return std::uniform_int_distribution<int64_t>{0, most}(mRandom);
    }

    bool coin()
    {
        return upTo(1) == 1;
    }

    void check(bool condition, char const* what)
    {
        ++mCalls;
        expect(condition,
            std::string{what} + " (seed " + std::to_string(mSeed) + ", call " + std::to_string(mCalls) + ')');
    }

    void makeProfiles(IPluginV3OneBuild& build)
    {
        auto const fixed = negotiated(build, mGiven);
        for (int64_t count = upTo(2); count >= 0; --count)
        {
            int64_t const least = upTo(mBatch);
            int64_t const most = least == 0 ? 1 + upTo(mBatch - 1) : least + upTo(mBatch - least);
            int64_t const typical = least + upTo(most - least);
            Profile profile{fixed};
            widen(profile.tensors, mGiven, least, typical, most);
            mProfiles.push_back(std::move(profile));
        }
    }

    Profile& anyProfile()
    {
        return mProfiles[upTo(static_cast<int64_t>(mProfiles.size()) - 1)];
    }

    std::vector<PluginTensorDesc> at(Profile const& profile, int64_t batch) const
    {
        return atBatch(profile.tensors, mGiven, batch);
    }

    // The bytes of a tensor that has `batch` samples.
    size_t bytesOf(int32_t place, int64_t batch) const
    {
        size_t const whole = mGiven.tensors[place].bytes;
        return isBatched(mGiven, place) ? whole / mBatch * batch : whole;
    }

    // Any bytes: numbers of every size where integers are expected, values and NaN where floats are.
    Memory garbage(size_t bytes)
    {
        Memory memory{bytes};
        auto* const words = static_cast<unsigned char*>(memory.at);
        for (size_t i = 0; i + 4 <= bytes; i += 4)
        {
            auto const any = static_cast<uint32_t>(mRandom());
            uint32_t const word = coin() ? any : coin() ? any % 16 : 0U - any % 16;
            std::memcpy(words + i, &word, sizeof(word));
        }
        return memory;
    }

    void configure(IPluginV3OneBuild& build, Profile const& profile)
    {
        auto const& all = profile.tensors;
        check(build.configurePlugin(all.data(), mInputs, &all.back(), 1) == 0, "configurePlugin");
    }

    size_t workspaceFor(IPluginV3OneBuild& build, Profile const& profile)
    {
        ++mCalls;
        return build.getWorkspaceSize(profile.tensors.data(), mInputs, &profile.tensors.back(), 1);
    }

    void setTactic(IPluginV3OneRuntime& runtime, int32_t tactic)
    {
        for (int64_t times = upTo(2); times >= 0; --times)
        {
            check(runtime.setTactic(tactic) == 0, "setTactic");
        }
    }

    void changeShape(IPluginV3OneRuntime& runtime, std::vector<PluginTensorDesc> const& all)
    {
        check(runtime.onShapeChange(all.data(), mInputs, &all.back(), 1) == 0, "onShapeChange");
    }

    // With made-up inputs, as in a build, the result does not count. Metadata alone are as they must be: sparse tensor
    // cores define nothing for others.
    void enqueue(
        IPluginV3OneRuntime& runtime, std::vector<PluginTensorDesc> const& all, size_t workspaceBytes, bool isReal)
    {
        int64_t const batch = all.front().dims.d[0];
        std::vector<Memory> memory;
        std::vector<void const*> pointers;
        bool const hasMetadata = mGiven.op.find("24") != std::string::npos;
        for (int32_t i = 0; i < mInputs; ++i)
        {
            size_t const bytes = bytesOf(i, batch);
            bool const isCopied = isReal || (hasMetadata && i == mInputs - 1);
            memory.push_back(isCopied ? Memory{bytes} : garbage(bytes));
            if (isCopied)
            {
                std::memcpy(memory.back().at, mData[i].data(), bytes);
            }
            pointers.push_back(memory.back().at);
        }
        Memory const y{bytesOf(mInputs, batch)};
        Memory const workspace{workspaceBytes};
        void* const work = workspaceBytes == 0 ? nullptr : workspace.at;
        check(runtime.enqueue(all.data(), &all.back(), pointers.data(), &y.at, work, nullptr) == 0, "enqueue");
        if (isReal)
        {
            compare(y.at, batch);
        }
    }

    double element(void const* y, int64_t place) const
    {
        switch (mGiven.type)
        {
        case DataType::kFLOAT:
            return static_cast<float const*>(y)[place];
        case DataType::kHALF:
            return __half2float(static_cast<__half const*>(y)[place]);
        default:
            return __bfloat162float(static_cast<__nv_bfloat16 const*>(y)[place]);
        }
    }

    // As tests/emulation/test_kernels.py compares: the error of all, and of the worst element.
    void compare(void const* y, int64_t batch)
    {
        Dims const& dims = mGiven.tensors.back().dims;
        int64_t const filters = dims.d[1];
        int64_t const pixels = batch * dims.d[2] * dims.d[3];
        int64_t const pitch = mGiven.type == DataType::kFLOAT ? filters : (filters + 7) / 8 * 8;
        double squares = 0.0;
        double errors = 0.0;
        double worst = 0.0;
        for (int64_t pixel = 0; pixel < pixels; ++pixel)
        {
            for (int64_t f = 0; f < pitch; ++f)
            {
                double const want = f < filters ? mWant[pixel * filters + f] : 0.0;
                double const error = std::fabs(element(y, pixel * pitch + f) - want);
                expect(f < filters || error == 0.0, "a padded channel is not 0");
                squares += want * want;
                errors += error * error;
                worst = error <= worst ? worst : error; // NaN stays
            }
        }
        double const tolerance = mGiven.tolerance;
        check(std::sqrt(errors) <= tolerance * std::sqrt(squares)
                && (pixels == 0
                    || worst <= 10 * tolerance * std::sqrt(squares / static_cast<double>(pixels * filters))),
            "the result");
    }

    // A plugin as it is, cloned, or attached to another context.
    std::unique_ptr<IPluginV3> passedOn(std::unique_ptr<IPluginV3> plugin)
    {
        if (coin())
        {
            return plugin;
        }
        auto& runtime = capability<IPluginV3OneRuntime>(*plugin, PluginCapabilityType::kRUNTIME);
        std::unique_ptr<IPluginV3> next{
            coin() ? plugin->clone() : runtime.attachToContext(coin() ? &mContext : nullptr)};
        check(next != nullptr, "clone or attachToContext");
        return next;
    }

    void build()
    {
        std::unique_ptr<IPluginV3> plugin{
            mCreator.createPlugin("node", const_cast<Fields&>(mGiven.fields).collection(), TensorRTPhase::kBUILD)};
        check(plugin != nullptr, "createPlugin");
        makeProfiles(capability<IPluginV3OneBuild>(*plugin, PluginCapabilityType::kBUILD));
        for (int64_t steps = 2 + upTo(3); steps > 0; --steps)
        {
            plugin = passedOn(std::move(plugin));
            auto& build = capability<IPluginV3OneBuild>(*plugin, PluginCapabilityType::kBUILD);
            Profile& profile = anyProfile();
            configure(build, profile);
            if (coin())
            {
                time(*plugin, profile);
            }
            if (coin())
            {
                configure(build, anyProfile());
                workspaceFor(build, profile);
            }
        }
        for (Profile& profile : mProfiles)
        {
            auto& build = capability<IPluginV3OneBuild>(*plugin, PluginCapabilityType::kBUILD);
            time(*plugin, profile);
            configure(build, profile);
            auto const tactics = tacticsOf(build);
            profile.tactic = tactics[upTo(static_cast<int64_t>(tactics.size()) - 1)];
            capability<IPluginV3OneRuntime>(*plugin, PluginCapabilityType::kRUNTIME).setTactic(profile.tactic);
            mWorkspaceBytes = std::max(mWorkspaceBytes, workspaceFor(build, profile));
        }
        mEngine = serialised(*plugin);
    }

    // A trial of a tactic at the typical shape, with made-up inputs. TensorRT tells the shape before the tactic.
    void time(IPluginV3& plugin, Profile const& profile)
    {
        std::unique_ptr<IPluginV3> const trial{plugin.clone()};
        auto& build = capability<IPluginV3OneBuild>(*trial, PluginCapabilityType::kBUILD);
        auto& runtime = capability<IPluginV3OneRuntime>(*trial, PluginCapabilityType::kRUNTIME);
        configure(build, profile);
        auto const tactics = tacticsOf(build);
        size_t const workspaceBytes = workspaceFor(build, profile);
        auto const typical = at(profile, profile.tensors.front().opt.d[0]);
        changeShape(runtime, typical);
        setTactic(runtime, tactics[upTo(static_cast<int64_t>(tactics.size()) - 1)]);
        enqueue(runtime, typical, coin() ? workspaceBytes : workspaceFor(build, profile), false);
    }

    std::unique_ptr<Fields> serialised(IPluginV3& plugin)
    {
        auto const* const fields
            = capability<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME).getFieldsToSerialize();
        check(fields != nullptr, "getFieldsToSerialize");
        return std::make_unique<Fields>(*fields);
    }

    // An engine is loaded; its context changes profiles, shapes, addresses and hands.
    void serve()
    {
        std::unique_ptr<IPluginV3> plugin{
            mCreator.createPlugin("node", mEngine->collection(), TensorRTPhase::kRUNTIME)};
        check(plugin != nullptr, "createPlugin of an engine");
        if (coin())
        {
            mEngine = serialised(*plugin);
        }
        for (int64_t changes = 1 + upTo(1); changes > 0; --changes)
        {
            Profile const& profile = anyProfile();
            int64_t const least = profile.tensors.front().min.d[0];
            int64_t const most = profile.tensors.front().max.d[0];
            plugin = passedOn(std::move(plugin));
            auto* runtime = &capability<IPluginV3OneRuntime>(*plugin, PluginCapabilityType::kRUNTIME);
            if (coin())
            {
                changeShape(*runtime, at(profile, least + upTo(most - least)));
            }
            setTactic(*runtime, profile.tactic);
            for (int64_t runs = upTo(1); runs >= 0; --runs)
            {
                plugin = passedOn(std::move(plugin));
                runtime = &capability<IPluginV3OneRuntime>(*plugin, PluginCapabilityType::kRUNTIME);
                auto const all = at(profile, least + upTo(most - least));
                if (coin())
                {
                    changeShape(*runtime, coin() ? all : at(profile, most));
                }
                if (coin())
                {
                    setTactic(*runtime, profile.tactic);
                }
                enqueue(*runtime, all, mWorkspaceBytes, true);
            }
        }
    }

    IPluginCreatorV3One& mCreator;
    Case const& mGiven;
    int mSeed;
    std::mt19937 mRandom;
    int32_t mInputs;
    int64_t mBatch;
    std::vector<std::vector<char>> mData;
    std::vector<double> mWant;
    std::vector<Profile> mProfiles;
    std::unique_ptr<Fields> mEngine;
    size_t mWorkspaceBytes{0};
    Context mContext;
    int mCalls{0};
};

} // namespace

int playOrders(IPluginCreatorV3One& creator, Case const& given, std::string const& path, int first, int last)
{
    int calls = 0;
    for (int seed = first; seed < last; ++seed)
    {
        calls += Player{creator, given, path, seed}.play();
    }
    std::printf("orders %d calls %d\n", last - first, calls);
    return 0;
}

} // namespace host

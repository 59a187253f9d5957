#include "emulator.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

uint3 threadIdx;
uint3 blockIdx;
dim3 blockDim;
dim3 gridDim;

namespace emulation
{
namespace
{

size_t constexpr kStackBytes = 256 * 1024; // sanitizers make large frames

struct Copy
{
    void* shared;
    void const* global;
    int bytes;
};

struct Thread
{
    ucontext_t context;
    void* stack = nullptr;
    uint3 index{};
    int number = 0; // in the block
    bool done = false;
    std::vector<Copy> open;               // issued, not committed
    std::deque<std::vector<Copy>> groups; // committed, oldest first
    void* fakeStack = nullptr;
};

struct Warp
{
    uint32_t runnable = 0; // bit per lane
    int arrived = 0;
    char const* instruction = nullptr;
    void* arguments[kWarpSize] = {};
};

struct Block
{
    std::vector<Thread*> threads;
    std::vector<Warp> warps;
    int alive = 0;
    int arrived = 0;
    std::unique_ptr<unsigned char, decltype(&std::free)> shared{nullptr, &std::free};
    std::function<void()> const* kernel = nullptr;
};

Block gBlock;
Thread* gCurrent = nullptr;
ucontext_t gScheduler;
void const* gSchedulerStack = nullptr;
size_t gSchedulerStackBytes = 0;
bool gInOrder = true;
uint64_t gState = 1;
cudaError_t gRefusal = cudaSuccess;
int gCapability = 90;
int gLaunches = 0;
std::vector<std::unique_ptr<Thread>> gPool; // threads keep their stacks from block to block

uint32_t randomBelow(uint32_t bound)
{
    gState = gState * 6364136223846793005ULL + 1442695040888963407ULL;
    return static_cast<uint32_t>((gState >> 33) % bound);
}

void leave(Thread* thread, bool forGood)
{
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(forGood ? nullptr : &thread->fakeStack, gSchedulerStack, gSchedulerStackBytes);
#else
    static_cast<void>(forGood);
#endif
    swapcontext(&thread->context, &gScheduler);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(thread->fakeStack, nullptr, nullptr);
#endif
}

void threadMain()
{
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &gSchedulerStack, &gSchedulerStackBytes);
#endif
    (*gBlock.kernel)();
    Thread* const thread = gCurrent;
    if (!thread->open.empty() || !thread->groups.empty())
    {
        fail("thread ends with cp.async under way");
    }
    thread->done = true;
    --gBlock.alive;
    leave(thread, true);
}

void resume(Thread* thread)
{
    gCurrent = thread;
    threadIdx = thread->index;
#if defined(__SANITIZE_ADDRESS__)
    void* fakeStack = nullptr;
    __sanitizer_start_switch_fiber(&fakeStack, thread->stack, kStackBytes);
#endif
    swapcontext(&gScheduler, &thread->context);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fakeStack, nullptr, nullptr);
#endif
    gCurrent = nullptr;
}

Warp& warpOf(Thread const* thread)
{
    return gBlock.warps[thread->number / kWarpSize];
}

uint32_t bitOf(Thread const* thread)
{
    return 1U << (thread->number % kWarpSize);
}

// Marks the running thread as waiting and lets others run until somebody marks it runnable.
void wait()
{
    Thread* const thread = gCurrent;
    warpOf(thread).runnable &= ~bitOf(thread);
    leave(thread, false);
}

uint32_t lanesOf(size_t warp)
{
    size_t const count = gBlock.threads.size() - warp * kWarpSize;
    return count >= kWarpSize ? 0xffffffffU : (1U << count) - 1;
}

void prepare(Thread& thread, int number, dim3 block)
{
    thread.number = number;
    thread.index = {number % block.x, number / block.x % block.y, number / block.x / block.y};
    thread.done = false;
    if (thread.stack == nullptr)
    {
        thread.stack
            = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (thread.stack == MAP_FAILED)
        {
            fail("no memory for the stack of a thread");
        }
    }
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(thread.stack, kStackBytes);
#endif
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack;
    thread.context.uc_stack.ss_size = kStackBytes;
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, threadMain, 0);
    // AddressSanitizer would forget what it knows of a stack of this size at every switch to it, which took half of the
    // time. The calls around a switch tell it all that it needs.
    thread.context.uc_stack.ss_size = 0;
}

// A random warp that can run, and how many times in a row its lanes are resumed.
void runBurst()
{
    size_t const count = gBlock.warps.size();
    size_t warp = gInOrder ? 0 : randomBelow(static_cast<uint32_t>(count));
    size_t tried = 0;
    while (gBlock.warps[warp].runnable == 0)
    {
        warp = (warp + 1) % count;
        if (++tried > count)
        {
            fail("deadlock: %d of %d threads wait at a barrier that the others do not reach (%s)", gBlock.alive,
                static_cast<int>(gBlock.threads.size()), gBlock.arrived > 0 ? "__syncthreads" : "a warp's instruction");
        }
    }
    // Half of the bursts last until the warp is blocked.
    uint32_t left = gInOrder || randomBelow(2) == 0 ? UINT32_MAX : 1 + randomBelow(64);
    while (gBlock.warps[warp].runnable != 0 && left-- > 0)
    {
        uint32_t const runnable = gBlock.warps[warp].runnable;
        uint32_t const from = gInOrder ? 0 : randomBelow(kWarpSize);
        uint32_t const later = runnable & (0xffffffffU << from);
        int const lane = __builtin_ctz(later != 0 ? later : runnable);
        Thread* const thread = gBlock.threads[warp * kWarpSize + lane];
        resume(thread);
        if (thread->done)
        {
            gBlock.warps[warp].runnable &= ~(1U << lane);
        }
    }
}

void runBlock(dim3 block, size_t sharedBytes, std::function<void()> const& kernel)
{
    auto const threads = static_cast<int>(block.x * block.y * block.z);
    while (static_cast<int>(gPool.size()) < threads)
    {
        gPool.push_back(std::make_unique<Thread>());
    }
    gBlock.threads.clear();
    gBlock.warps.assign((threads + kWarpSize - 1) / kWarpSize, Warp{});
    gBlock.alive = threads;
    gBlock.arrived = 0;
    gBlock.kernel = &kernel;
    // Rounded down to the alignment's granule by nobody: what lies past the last byte is the sanitizer's.
    void* shared = nullptr;
    if (posix_memalign(&shared, 128, sharedBytes) != 0)
    {
        fail("no memory for %zu bytes of shared memory", sharedBytes);
    }
    gBlock.shared.reset(static_cast<unsigned char*>(shared));
    std::memset(shared, 0xff, sharedBytes);
    for (int number = 0; number < threads; ++number)
    {
        prepare(*gPool[number], number, block);
        gBlock.threads.push_back(gPool[number].get());
    }
    for (size_t warp = 0; warp < gBlock.warps.size(); ++warp)
    {
        gBlock.warps[warp].runnable = lanesOf(warp);
    }
    while (gBlock.alive > 0)
    {
        runBurst();
    }
}

} // namespace

void setSeed(uint64_t seed)
{
    gInOrder = seed == 0;
    gState = seed * 2 + 1;
}

void fail(char const* format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    std::fprintf(stderr, "emulation: ");
    std::vfprintf(stderr, format, arguments);
    va_end(arguments);
    if (gCurrent != nullptr)
    {
        std::fprintf(stderr, " [block %u,%u,%u thread %d]", blockIdx.x, blockIdx.y, blockIdx.z, gCurrent->number);
    }
    std::fprintf(stderr, "\n");
    std::_Exit(kFailureStatus);
}

void setCapability(int capability)
{
    gCapability = capability;
}

int capability()
{
    return gCapability;
}

void refuseKernels(cudaError_t error)
{
    gRefusal = error;
}

cudaError_t refusal()
{
    return gRefusal;
}

int launches()
{
    return gLaunches;
}

cudaError_t launch(dim3 grid, dim3 block, size_t sharedBytes, cudaStream_t, std::function<void()> const& kernel)
{
    uint64_t const threads = static_cast<uint64_t>(block.x) * block.y * block.z;
    bool const blockFits = threads > 0 && threads <= 1024 && block.z <= 64;
    bool const gridFits
        = grid.x > 0 && grid.x <= INT32_MAX && grid.y > 0 && grid.y <= 65535 && grid.z > 0 && grid.z <= 65535;
    if (gRefusal != cudaSuccess || !blockFits || !gridFits)
    {
        return gRefusal != cudaSuccess ? gRefusal : cudaErrorInvalidValue;
    }
    ++gLaunches;
    gridDim = grid;
    blockDim = block;
    for (unsigned int z = 0; z < grid.z; ++z)
    {
        for (unsigned int y = 0; y < grid.y; ++y)
        {
            for (unsigned int x = 0; x < grid.x; ++x)
            {
                blockIdx = {x, y, z};
                runBlock(block, sharedBytes, kernel);
            }
        }
    }
    return cudaSuccess;
}

unsigned char* dynamicShared()
{
    return gBlock.shared.get();
}

int lane()
{
    return gCurrent->number % kWarpSize;
}

void blockBarrier()
{
    if (gBlock.alive != static_cast<int>(gBlock.threads.size()))
    {
        fail("__syncthreads after a thread of the block has ended");
    }
    if (++gBlock.arrived < gBlock.alive)
    {
        wait();
        return;
    }
    gBlock.arrived = 0;
    for (size_t warp = 0; warp < gBlock.warps.size(); ++warp)
    {
        gBlock.warps[warp].runnable = lanesOf(warp);
    }
}

void meetWarp(char const* name, void* argument, std::function<void(void* const (&)[kWarpSize])> const& compute)
{
    size_t const number = gCurrent->number / kWarpSize;
    Warp& warp = gBlock.warps[number];
    if (warp.arrived > 0 && std::strcmp(warp.instruction, name) != 0)
    {
        fail("%s meets %s in one warp", name, warp.instruction);
    }
    warp.instruction = name;
    warp.arguments[lane()] = argument;
    if (++warp.arrived < kWarpSize)
    {
        wait();
        return;
    }
    warp.arrived = 0;
    compute(warp.arguments);
    warp.runnable = 0xffffffffU;
}

void copyAsync(void* shared, void const* global, int bytes)
{
    if (bytes < 0 || bytes > 16)
    {
        fail("cp.async of %d bytes", bytes);
    }
    if (reinterpret_cast<uintptr_t>(shared) % 16 != 0 || reinterpret_cast<uintptr_t>(global) % 16 != 0)
    {
        fail("cp.async: an address is not a multiple of 16");
    }
    // From here to the wait the destination holds anything: whoever reads it, too late or too soon, reads NaN.
    std::memset(shared, 0xff, 16);
    gCurrent->open.push_back({shared, global, bytes});
}

void copyAsyncCommit()
{
    gCurrent->groups.push_back(std::move(gCurrent->open));
    gCurrent->open.clear();
}

void copyAsyncWait(int pending)
{
    while (static_cast<int>(gCurrent->groups.size()) > pending)
    {
        for (Copy const& copy : gCurrent->groups.front())
        {
            std::memset(copy.shared, 0, 16);
            std::memcpy(copy.shared, copy.global, copy.bytes);
        }
        gCurrent->groups.pop_front();
    }
}

} // namespace emulation

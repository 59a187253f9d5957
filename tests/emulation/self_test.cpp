// Small kernels that test the emulator: self_test NAME [INPUT OUTPUT] [SEED]. test_emulator.py knows what to expect.

#include <emulated_sparse.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <string>
#include <vector>

namespace
{

std::vector<unsigned char> gInput;
std::vector<unsigned char> gOutput;

template <typename T>
T const* input(size_t offset = 0)
{
    return reinterpret_cast<T const*>(gInput.data() + offset);
}

template <typename T>
T* output(size_t count)
{
    gOutput.resize(count * sizeof(T));
    return reinterpret_cast<T*>(gOutput.data());
}

void onWarp(size_t sharedBytes, std::function<void()> const& kernel)
{
    emulation::launch(dim3(1), dim3(32), sharedBytes, nullptr, kernel);
}

// Input: per lane, four registers of a, two of b and four floats of d. Output: d.
template <typename T>
void mma()
{
    float* const out = output<float>(32 * 4);
    onWarp(0,
        [=]
        {
            auto const* const registers = input<uint32_t>() + threadIdx.x * 10;
            uint32_t a[4];
            float d[4];
            std::memcpy(a, registers, sizeof(a));
            std::memcpy(d, registers + 6, sizeof(d));
            trtkp::ptx::mmaM16N8K16<T>(d, a, registers[4], registers[5]);
            std::memcpy(out + threadIdx.x * 4, d, sizeof(d));
        });
}

void mmaTf32()
{
    float* const out = output<float>(32 * 4);
    onWarp(0,
        [=]
        {
            auto const* const registers = input<uint32_t>() + threadIdx.x * 10;
            uint32_t a[4];
            float d[4];
            std::memcpy(a, registers, sizeof(a));
            std::memcpy(d, registers + 6, sizeof(d));
            trtkp::ptx::mmaM16N8K8(d, a, registers[4], registers[5]);
            std::memcpy(out + threadIdx.x * 4, d, sizeof(d));
        });
}

// Input: per lane, four registers of a, four of b, the metadata and four floats of d. Output: d.
template <typename T, int32_t kSelector>
void mmaSparse()
{
    float* const out = output<float>(32 * 4);
    onWarp(0,
        [=]
        {
            auto const* const registers = input<uint32_t>() + threadIdx.x * 13;
            uint32_t a[4];
            uint32_t b[4];
            float d[4];
            std::memcpy(a, registers, sizeof(a));
            std::memcpy(b, registers + 4, sizeof(b));
            std::memcpy(d, registers + 9, sizeof(d));
            trtkp::ptx::mmaSparseM16N8K32<T, kSelector>(d, a, b, registers[8]);
            std::memcpy(out + threadIdx.x * 4, d, sizeof(d));
        });
}

// The input's floats as TF32.
void roundToTf32()
{
    size_t const count = gInput.size() / sizeof(uint32_t);
    auto* const out = output<uint32_t>(count);
    for (size_t i = 0; i < count; ++i)
    {
        out[i] = trtkp::ptx::roundToTf32(input<uint32_t>()[i]);
    }
}

// Input: 32 numbers. Output: their ballot as each lane has it, and its number of ones.
void ballot()
{
    auto* const out = output<uint32_t>(64);
    onWarp(0,
        [=]
        {
            out[threadIdx.x] = __ballot_sync(0xffffffffU, input<int32_t>()[threadIdx.x] > 0);
            out[32 + threadIdx.x] = static_cast<uint32_t>(__popc(out[threadIdx.x]));
        });
}

// Copies of 16 bytes, taken and ignored.
void copyAsyncUnless()
{
    unsigned char* const out = output<unsigned char>(32);
    std::vector<uint4> source(1);
    std::memcpy(source.data(), input<unsigned char>(), 16);
    void const* const from = source.data();
    emulation::launch(dim3(1), dim3(1), 32, nullptr,
        [=]
        {
            unsigned char* const shared = emulation::dynamicShared();
            trtkp::ptx::copyAsync16Unless(0U, shared, from);
            trtkp::ptx::copyAsync16Unless(1U << 31, shared + 16, static_cast<unsigned char const*>(from) + 4096);
            trtkp::ptx::copyAsyncCommit();
            trtkp::ptx::copyAsyncWait<0>();
            std::memcpy(out, shared, 32);
        });
}

// Input: 32 offsets of rows, then 1 KiB of shared memory. Output: four registers per lane.
void loadMatrix()
{
    auto* const out = output<uint32_t>(32 * 4);
    onWarp(1024,
        [=]
        {
            unsigned char* const shared = emulation::dynamicShared();
            std::memcpy(shared + threadIdx.x * 32, input<unsigned char>(128) + threadIdx.x * 32, 32);
            __syncthreads();
            uint32_t registers[4];
            trtkp::ptx::loadMatrixX4(registers, shared + input<int32_t>()[threadIdx.x]);
            std::memcpy(out + threadIdx.x * 4, registers, sizeof(registers));
        });
}

// Two groups of copies, 10 and 0 bytes: what shared memory holds after issue, after the first wait, after the second.
void copyAsync()
{
    unsigned char* const out = output<unsigned char>(96);
    std::vector<uint4> source(1);
    std::memcpy(source.data(), input<unsigned char>(), 16);
    void const* const from = source.data();
    emulation::launch(dim3(1), dim3(1), 32, nullptr,
        [=]
        {
            unsigned char* const shared = emulation::dynamicShared();
            std::memset(shared, 1, 32);
            trtkp::ptx::copyAsync16(shared, from, 10);
            trtkp::ptx::copyAsyncCommit();
            trtkp::ptx::copyAsync16(shared + 16, from, 0);
            trtkp::ptx::copyAsyncCommit();
            std::memcpy(out, shared, 32);
            trtkp::ptx::copyAsyncWait<1>();
            std::memcpy(out + 32, shared, 32);
            trtkp::ptx::copyAsyncWait<0>();
            std::memcpy(out + 64, shared, 32);
        });
}

// Three shuffles of 100 + lane.
void shuffles()
{
    int32_t* const out = output<int32_t>(96);
    onWarp(0,
        [=]
        {
            int32_t const lane = static_cast<int32_t>(threadIdx.x);
            out[lane] = __shfl_sync(0xffffffffU, 100 + lane, lane * 7 + 3);
            out[32 + lane] = __shfl_xor_sync(0xffffffffU, 100 + lane, 5);
            out[64 + lane] = __shfl_down_sync(0xffffffffU, 100 + lane, 4U);
        });
}

// Every fp16 and bfloat16 as float32, then the input's floats as fp16 and bfloat16.
void conversions()
{
    size_t const count = gInput.size() / sizeof(float);
    auto* const out = output<unsigned char>(2 * 65536 * sizeof(float) + 2 * count * sizeof(uint16_t));
    auto* const widened = reinterpret_cast<float*>(out);
    for (uint32_t bits = 0; bits < 65536; ++bits)
    {
        widened[bits] = __half2float({static_cast<uint16_t>(bits)});
        widened[65536 + bits] = __bfloat162float({static_cast<uint16_t>(bits)});
    }
    auto* const narrowed = reinterpret_cast<uint16_t*>(widened + 2 * 65536);
    for (size_t i = 0; i < count; ++i)
    {
        narrowed[i] = __float2half_rn(input<float>()[i]).bits;
        narrowed[count + i] = __float2bfloat16_rn(input<float>()[i]).bits;
    }
}

// 128 threads reverse an array through shared memory.
void reverse(bool withBarrier)
{
    int32_t* const out = output<int32_t>(128);
    emulation::launch(dim3(1), dim3(128), 128 * sizeof(int32_t), nullptr,
        [=]
        {
            auto* const shared = reinterpret_cast<int32_t*>(emulation::dynamicShared());
            shared[threadIdx.x] = static_cast<int32_t>(threadIdx.x);
            __syncwarp();
            if (withBarrier)
            {
                __syncthreads();
            }
            out[threadIdx.x] = shared[127 - threadIdx.x];
        });
}

// Static shared memory, a grid of three dimensions and a block of two.
void indices()
{
    int32_t* const out = output<int32_t>(2 * 3 * 2 * 64);
    emulation::launch(dim3(2, 3, 2), dim3(16, 4), 0, nullptr,
        [=]
        {
            __shared__ int32_t values[64];
            unsigned int const thread = threadIdx.y * blockDim.x + threadIdx.x;
            unsigned int const block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
            values[63 - thread] = static_cast<int32_t>(block * 64 + thread);
            __syncthreads();
            out[block * 64 + thread] = values[63 - thread];
        });
}

int volatile gHidden; // what the compiler must not see through

std::map<std::string, std::function<void()>> const kTests{
    {"mma_float16", mma<__half>},
    {"mma_sparse_float16_0", mmaSparse<__half, 0>},
    {"mma_sparse_float16_1", mmaSparse<__half, 1>},
    {"mma_sparse_bfloat16_0", mmaSparse<__nv_bfloat16, 0>},
    {"mma_sparse_bfloat16_1", mmaSparse<__nv_bfloat16, 1>},
    {"mma_bfloat16", mma<__nv_bfloat16>},
    {"mma_tf32", mmaTf32},
    {"round_to_tf32", roundToTf32},
    {"ballot", ballot},
    {"cp_async_unless", copyAsyncUnless},
    {"mma_not_tf32",
        []
        {
            onWarp(0,
                []
                {
                    float d[4] = {};
                    uint32_t const a[4] = {0x3f800001U, 0, 0, 0};
                    trtkp::ptx::mmaM16N8K8(d, a, 0, 0);
                });
        }},
    {"ldmatrix", loadMatrix},
    {"cp_async", copyAsync},
    {"shuffles", shuffles},
    {"conversions", conversions},
    {"indices", indices},
    {"reverse", [] { reverse(true); }},
    {"missing_barrier", [] { reverse(false); }},
    {"divergent_barrier",
        []
        {
            emulation::launch(dim3(1), dim3(64), 0, nullptr,
                []
                {
                    if (threadIdx.x != 5)
                    {
                        __syncthreads();
                    }
                });
        }},
    {"divergent_barrier_of_the_last",
        []
        {
            emulation::launch(dim3(1), dim3(64), 0, nullptr,
                []
                {
                    if (threadIdx.x != 63)
                    {
                        __syncthreads();
                    }
                });
        }},
    {"divergent_warp",
        []
        {
            onWarp(0,
                []
                {
                    if (threadIdx.x < 31)
                    {
                        __syncwarp();
                    }
                });
        }},
    {"mixed_instructions",
        []
        {
            onWarp(0,
                []
                {
                    if (threadIdx.x < 16)
                    {
                        __syncwarp();
                    }
                    else
                    {
                        __shfl_xor_sync(0xffffffffU, 1, 1);
                    }
                });
        }},
    {"shared_out_of_bounds",
        []
        {
            gHidden = 64;
            onWarp(64, [] { emulation::dynamicShared()[gHidden] = 1; });
        }},
    {"global_out_of_bounds",
        []
        {
            gHidden = 64;
            auto* const memory = static_cast<unsigned char*>(std::malloc(64));
            onWarp(0, [=] { memory[gHidden] = 1; });
            std::free(memory);
        }},
    {"copy_out_of_bounds",
        []
        {
            auto* const memory = static_cast<unsigned char*>(std::malloc(64));
            onWarp(64,
                [=]
                {
                    trtkp::ptx::copyAsync16(emulation::dynamicShared(), memory + 64, 2);
                    trtkp::ptx::copyAsyncCommit();
                    trtkp::ptx::copyAsyncWait<0>();
                });
            std::free(memory);
        }},
    {"copy_misaligned",
        []
        {
            auto* const memory = static_cast<unsigned char*>(std::malloc(64));
            onWarp(64, [=] { trtkp::ptx::copyAsync16(emulation::dynamicShared(), memory + 2, 16); });
            std::free(memory);
        }},
    {"copy_abandoned",
        []
        {
            auto* const memory = static_cast<unsigned char*>(std::malloc(64));
            onWarp(64, [=] { trtkp::ptx::copyAsync16(emulation::dynamicShared(), memory, 16); });
            std::free(memory);
        }},
    {"misaligned_vector",
        []
        {
            gHidden = 4;
            auto* const memory = static_cast<unsigned char*>(std::calloc(64, 1));
            onWarp(0, [=] { gHidden = static_cast<int>(reinterpret_cast<uint4*>(memory + gHidden)->x); });
            std::free(memory);
        }},
};

} // namespace

int main(int argc, char** argv)
{
    auto const test = argc < 2 ? kTests.end() : kTests.find(argv[1]);
    if (test == kTests.end())
    {
        std::fprintf(stderr, "usage: self_test NAME [INPUT OUTPUT] [SEED]\n");
        return 2;
    }
    if (argc > 3)
    {
        std::ifstream file{argv[2], std::ios::binary};
        gInput.assign(std::istreambuf_iterator<char>{file}, {});
    }
    emulation::setSeed(argc > 4 ? std::strtoull(argv[4], nullptr, 10) : 0);
    test->second();
    if (argc > 3)
    {
        std::ofstream{argv[3], std::ios::binary}.write(
            reinterpret_cast<char const*>(gOutput.data()), static_cast<std::streamsize>(gOutput.size()));
    }
    return 0;
}

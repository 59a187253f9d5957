// What the kernels use of CUDA's runtime header, for a C++ compiler.
#pragma once

#include "emulator.h"

#include <cmath>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __shared__ static // blocks run one after another

struct alignas(8) float2
{
    float x, y;
};

struct alignas(16) float4
{
    float x, y, z, w;
};

struct alignas(16) uint4
{
    uint32_t x, y, z, w;
};

inline void __syncthreads()
{
    emulation::blockBarrier();
}

inline void __syncwarp(unsigned int mask = 0xffffffffU)
{
    if (mask != 0xffffffffU)
    {
        emulation::fail("__syncwarp with a partial mask is not emulated");
    }
    emulation::meetWarp("__syncwarp", nullptr, [](auto&) {});
}

namespace emulation
{

// Every lane gives a value and names the lane whose value it takes; its own where there is no such lane.
template <typename T>
T shuffle(char const* name, unsigned int mask, T value, int source)
{
    struct Slot
    {
        T given, taken;
        int source;
    } slot{value, value, source};
    if (mask != 0xffffffffU)
    {
        fail("%s with a partial mask is not emulated", name);
    }
    meetWarp(name, &slot,
        [](void* const(&slots)[kWarpSize])
        {
            for (void* const pointer : slots)
            {
                Slot& to = *static_cast<Slot*>(pointer);
                bool const exists = to.source >= 0 && to.source < kWarpSize;
                to.taken = exists ? static_cast<Slot*>(slots[to.source])->given : to.given;
            }
        });
    return slot.taken;
}

} // namespace emulation

template <typename T>
T __shfl_sync(unsigned int mask, T value, int source)
{
    return emulation::shuffle("__shfl_sync", mask, value, source & (emulation::kWarpSize - 1));
}

template <typename T>
T __shfl_xor_sync(unsigned int mask, T value, int lanes)
{
    return emulation::shuffle("__shfl_xor_sync", mask, value, emulation::lane() ^ lanes);
}

template <typename T>
T __shfl_down_sync(unsigned int mask, T value, unsigned int lanes)
{
    return emulation::shuffle("__shfl_down_sync", mask, value, emulation::lane() + static_cast<int>(lanes));
}

inline uint32_t __ballot_sync(unsigned int mask, bool predicate)
{
    struct Slot
    {
        bool given;
        uint32_t ballot;
    } slot{predicate, 0};
    if (mask != 0xffffffffU)
    {
        emulation::fail("__ballot_sync with a partial mask is not emulated");
    }
    emulation::meetWarp("__ballot_sync", &slot,
        [](void* const(&slots)[emulation::kWarpSize])
        {
            uint32_t ballot = 0;
            for (int lane = 0; lane < emulation::kWarpSize; ++lane)
            {
                ballot |= static_cast<uint32_t>(static_cast<Slot*>(slots[lane])->given) << lane;
            }
            for (void* const pointer : slots)
            {
                static_cast<Slot*>(pointer)->ballot = ballot;
            }
        });
    return slot.ballot;
}

inline int __popc(uint32_t bits)
{
    return __builtin_popcount(bits);
}

// --- host side
// --------------------------------------------------------------------------------------------------------

enum cudaFuncAttribute
{
    cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
};

// The most that a block may ask for on sm_86, sm_89 and sm_120, the smallest of the architectures built for.
inline cudaError_t cudaFuncSetAttribute(void const*, cudaFuncAttribute, int bytes)
{
    return emulation::refusal() != cudaSuccess ? emulation::refusal()
        : bytes <= 99 * 1024                   ? cudaSuccess
                                               : cudaErrorInvalidValue;
}

template <typename Function>
cudaError_t cudaFuncSetAttribute(Function* function, cudaFuncAttribute attribute, int bytes)
{
    return cudaFuncSetAttribute(reinterpret_cast<void const*>(function), attribute, bytes);
}

enum cudaDeviceAttr
{
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76,
};

inline cudaError_t cudaGetDevice(int* device)
{
    *device = 0;
    return emulation::capability() > 0 ? cudaSuccess : cudaErrorNoDevice;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int)
{
    int const capability = emulation::capability();
    *value = attribute == cudaDevAttrComputeCapabilityMajor ? capability / 10 : capability % 10;
    return cudaSuccess;
}

inline cudaError_t cudaGetLastError()
{
    return cudaSuccess;
}

inline char const* cudaGetErrorString(cudaError_t error)
{
    switch (error)
    {
    case cudaSuccess:
        return "no error";
    case cudaErrorInvalidValue:
        return "invalid argument";
    case cudaErrorNoDevice:
        return "no CUDA-capable device is detected";
    case cudaErrorNoKernelImageForDevice:
        return "no kernel image is available for execution on the device";
    }
    return "unknown error";
}

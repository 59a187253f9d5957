// What every kernel needs from CUDA, and macros for the few places where a host compiler differs from nvcc. With
// those, the emulation in tests/emulation compiles the same sources as ordinary C++.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__
#define TRTKP_DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#define TRTKP_UNROLL _Pragma("unroll")
#define TRTKP_NO_UNROLL _Pragma("unroll 1")
#define TRTKP_UNROLL_4 _Pragma("unroll 4")
#else
#define TRTKP_DYNAMIC_SHARED(name) unsigned char* name = ::emulation::dynamicShared()
#define TRTKP_UNROLL
#define TRTKP_NO_UNROLL
#define TRTKP_UNROLL_4
#endif

namespace trtkp
{

template <typename Kernel, typename Argument>
cudaError_t launchKernel(
    Kernel* kernel, dim3 grid, dim3 block, size_t sharedBytes, cudaStream_t stream, Argument const& argument)
{
#ifdef __CUDACC__
    kernel<<<grid, block, sharedBytes, stream>>>(argument);
    return cudaGetLastError();
#else
    return ::emulation::launch(grid, block, sharedBytes, stream, [=] { kernel(argument); });
#endif
}

__device__ __forceinline__ float toFloat(float value)
{
    return value;
}

__device__ __forceinline__ float toFloat(__half value)
{
    return __half2float(value);
}

__device__ __forceinline__ float toFloat(__nv_bfloat16 value)
{
    return __bfloat162float(value);
}

template <typename T>
__device__ __forceinline__ T fromFloat(float value);

template <>
__device__ __forceinline__ float fromFloat<float>(float value)
{
    return value;
}

template <>
__device__ __forceinline__ __half fromFloat<__half>(float value)
{
    return __float2half_rn(value);
}

template <>
__device__ __forceinline__ __nv_bfloat16 fromFloat<__nv_bfloat16>(float value)
{
    return __float2bfloat16_rn(value);
}

} // namespace trtkp

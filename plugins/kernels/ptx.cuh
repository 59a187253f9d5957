// The PTX instructions that the kernels use, one function each. A host compiler takes functions with the same names
// from tests/emulation, which follow the register layouts in the PTX manual.
#pragma once

#include "device.cuh"

#ifndef __CUDACC__
#include <emulated_ptx.h>
#else

namespace trtkp::ptx
{

__device__ __forceinline__ uint32_t sharedAddress(void const* pointer)
{
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Copies `bytes` (0 to 16) from global to shared memory and fills the rest of the 16 bytes with zeros. Both addresses
// are multiples of 16; with 0 bytes the source is not read.
__device__ __forceinline__ void copyAsync16(void* shared, void const* global, int32_t bytes)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(sharedAddress(shared)), "l"(global), "r"(bytes)
        : "memory");
}

// Copies 16 bytes from global to shared memory. If any bit of `ignore` is set, it writes zeros and does not read the
// source. Both addresses are multiples of 16. A predicate costs less than a number of bytes, because nothing has to be
// computed from it. Bits cost less than a bool, because the AND that selects them sets the predicate.
__device__ __forceinline__ void copyAsync16Unless(uint32_t ignore, void* shared, void const* global)
{
    asm volatile("{\n.reg .pred ignore;\nsetp.ne.b32 ignore, %2, 0;\n"
                 "cp.async.cg.shared.global [%0], [%1], 16, ignore;\n}\n" ::"r"(sharedAddress(shared)),
        "l"(global), "r"(ignore)
        : "memory");
}

__device__ __forceinline__ void copyAsyncCommit()
{
    asm volatile("cp.async.commit_group;\n" ::: "memory");
}

// Waits until at most the `kPending` latest groups of the thread are still in flight.
template <int32_t kPending>
__device__ __forceinline__ void copyAsyncWait()
{
    asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

// Loads four 8x8 matrices of 16-bit elements. Lane i gives the address of row i % 8 of matrix i / 8. Matrix j arrives
// in registers[j]: lane i gets columns 2 * (i % 4) and 2 * (i % 4) + 1 of its row i / 4.
__device__ __forceinline__ void loadMatrixX4(uint32_t (&registers)[4], void const* row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
        : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
        : "r"(sharedAddress(row))
        : "memory");
}

// d += a * b, with a [16, 16] and b [16, 8] of type T, and d in float32.
template <typename T>
__device__ __forceinline__ void mmaM16N8K16(float (&d)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1);

template <>
__device__ __forceinline__ void mmaM16N8K16<__half>(float (&d)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
__device__ __forceinline__ void mmaM16N8K16<__nv_bfloat16>(
    float (&d)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Rounds to the nearest TF32 value, ties away from zero. The result has the bits of a float32.
__device__ __forceinline__ uint32_t roundToTf32(uint32_t bits)
{
    uint32_t rounded;
    asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(rounded) : "f"(__uint_as_float(bits)));
    return rounded;
}

// d += a * b, with a [16, 8] and b [8, 8] of TF32 values, and d in float32.
__device__ __forceinline__ void mmaM16N8K8(float (&d)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

} // namespace trtkp::ptx

#endif

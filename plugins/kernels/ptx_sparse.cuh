// The sparse tensor-core instruction of T4. A host compiler takes its emulation.
#pragma once

#include "ptx.cuh"

#include <type_traits>

#ifndef __CUDACC__
#include <emulated_sparse.h>
#else

namespace trtkp::ptx
{

// d += a * b, with a [16, 32] of type T, of which at most two in every four columns are not 0, stored as [16, 16], and
// b [32, 8]. `metadata` holds the places in ascending order. With kSelector 0 the words of lanes 0 and 1 of every four
// count, with kSelector 1 those of lanes 2 and 3. ptxas warns that the instruction without ::ordered_metadata is slow
// on some architectures.
#define TRTKP_MMA_SPARSE(type)                                                                                         \
    asm volatile("mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32." type "." type                           \
                 ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, %13;\n"          \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                               \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]), "r"(metadata),       \
        "n"(kSelector))

template <typename T, int32_t kSelector>
__device__ __forceinline__ void mmaSparseM16N8K32(
    float (&d)[4], uint32_t const (&a)[4], uint32_t const (&b)[4], uint32_t metadata)
{
    static_assert(kSelector == 0 || kSelector == 1, "lanes 0 and 1, or 2 and 3");
    if constexpr (std::is_same_v<T, __half>)
    {
        TRTKP_MMA_SPARSE("f16");
    }
    else
    {
        TRTKP_MMA_SPARSE("bf16");
    }
}

#undef TRTKP_MMA_SPARSE

} // namespace trtkp::ptx

#endif

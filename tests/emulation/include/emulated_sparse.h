// mma.sp of plugins/kernels/ptx_sparse.cuh by the layouts that the PTX manual documents (sections "Sparse matrix
// storage" and "Matrix Fragments for sparse mma.m16n8k32 with .f16 and .bf16 types").
#pragma once

#include "emulated_ptx.h"

namespace trtkp::ptx
{

// A [16, 32] from stored values [16, 16] and metadata: word T of lanes T and T + 1 of every four, where T is 0 or 2 by
// the selector, has the places of columns 0-15 or 16-31 of row `group` in its lower half, of row `group` + 8 above.
template <typename T, int32_t kSelector>
void mmaSparseM16N8K32(float (&d)[4], uint32_t const (&a)[4], uint32_t const (&b)[4], uint32_t metadata)
{
    struct Slot
    {
        float* d;
        uint32_t const* a;
        uint32_t const* b;
        uint32_t metadata;
    } slot{d, a, b, metadata};
    emulation::meetWarp(kSelector == 0 ? "mma.sp 0" : "mma.sp 1", &slot,
        [](void* const(&slots)[emulation::kWarpSize])
        {
            float a[16][32] = {};
            bool isStored[16][32] = {};
            float b[32][8];
            for (int lane = 0; lane < emulation::kWarpSize; ++lane)
            {
                Slot const& from = *static_cast<Slot const*>(slots[lane]);
                int const group = lane / 4;
                for (int i = 0; i < 8; i += 2) // a0 .. a7: the two of a register are one quad of the row
                {
                    int const row = i % 4 < 2 ? group : group + 8;
                    int const quad = lane % 4 + (i < 4 ? 0 : 4);
                    int const source = group * 4 + kSelector * 2 + quad / 4;
                    uint32_t const word = static_cast<Slot const*>(slots[source])->metadata;
                    uint32_t const code = word >> (row / 8 * 16 + quad % 4 * 4) & 15U;
                    uint32_t const low = code & 3U;
                    uint32_t const high = code >> 2;
                    if (low >= high)
                    {
                        emulation::fail("mma.sp: places %u and %u of a quad are not in ascending order", low, high);
                    }
                    auto const first = static_cast<uint16_t>(from.a[i / 2]);
                    auto const second = static_cast<uint16_t>(from.a[i / 2] >> 16);
                    isStored[row][quad * 4 + low] = isStored[row][quad * 4 + high] = true;
                    a[row][quad * 4 + low] = elementAsFloat(first, static_cast<T*>(nullptr));
                    a[row][quad * 4 + high] = elementAsFloat(second, static_cast<T*>(nullptr));
                }
                for (int i = 0; i < 8; ++i)
                {
                    int const row = lane % 4 * 2 + i % 2 + i / 2 * 8;
                    auto const bits = static_cast<uint16_t>(from.b[i / 2] >> (i % 2 * 16));
                    b[row][group] = elementAsFloat(bits, static_cast<T*>(nullptr));
                }
            }
            for (int lane = 0; lane < emulation::kWarpSize; ++lane)
            {
                for (int i = 0; i < 4; ++i)
                {
                    int const row = lane / 4 + (i < 2 ? 0 : 8);
                    int const column = lane % 4 * 2 + i % 2;
                    float sum = static_cast<Slot*>(slots[lane])->d[i];
                    for (int k = 0; k < 32; ++k)
                    {
                        // What is not stored is not multiplied: no NaN of b counts there.
                        sum += isStored[row][k] ? a[row][k] * b[k][column] : 0.F;
                    }
                    static_cast<Slot*>(slots[lane])->d[i] = sum;
                }
            }
        });
}

} // namespace trtkp::ptx

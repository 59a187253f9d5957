// The instructions of plugins/kernels/ptx.cuh by the register layouts that the PTX manual documents
// (sections cp.async, ldmatrix, cvt, "Matrix Fragments for mma.m16n8k16" and "Matrix Fragments for mma.m16n8k8").
#pragma once

#include "cuda_bf16.h"

namespace trtkp::ptx
{

inline void copyAsync16(void* shared, void const* global, int32_t bytes)
{
    emulation::copyAsync(shared, global, bytes);
}

inline void copyAsync16Unless(uint32_t ignore, void* shared, void const* global)
{
    emulation::copyAsync(shared, global, ignore != 0 ? 0 : 16);
}

inline void copyAsyncCommit()
{
    emulation::copyAsyncCommit();
}

template <int32_t kPending>
void copyAsyncWait()
{
    emulation::copyAsyncWait(kPending);
}

inline void loadMatrixX4(uint32_t (&registers)[4], void const* row)
{
    struct Slot
    {
        unsigned char const* row;
        uint32_t* registers;
    } slot{static_cast<unsigned char const*>(row), registers};
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0)
    {
        emulation::fail("ldmatrix: row address is not a multiple of 16");
    }
    emulation::meetWarp("ldmatrix", &slot,
        [](void* const(&slots)[emulation::kWarpSize])
        {
            for (int matrix = 0; matrix < 4; ++matrix)
            {
                for (int lane = 0; lane < emulation::kWarpSize; ++lane)
                {
                    unsigned char const* const from = static_cast<Slot*>(slots[matrix * 8 + lane / 4])->row;
                    std::memcpy(&static_cast<Slot*>(slots[lane])->registers[matrix], from + lane % 4 * 4, 4);
                }
            }
        });
}

inline float elementAsFloat(uint16_t bits, __half*)
{
    return __half2float({bits});
}

inline float elementAsFloat(uint16_t bits, __nv_bfloat16*)
{
    return __bfloat162float({bits});
}

template <typename T>
void mmaM16N8K16(float (&d)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1)
{
    struct Slot
    {
        float* d;
        uint32_t const* a;
        uint32_t b[2];
    } slot{d, a, {b0, b1}};
    emulation::meetWarp("mma", &slot,
        [](void* const(&slots)[emulation::kWarpSize])
        {
            float a[16][16];
            float b[16][8];
            for (int lane = 0; lane < emulation::kWarpSize; ++lane)
            {
                Slot const& from = *static_cast<Slot const*>(slots[lane]);
                int const group = lane / 4;
                for (int i = 0; i < 8; ++i) // a0 .. a7, two to a register
                {
                    int const row = i % 4 < 2 ? group : group + 8;
                    int const column = lane % 4 * 2 + i % 2 + (i < 4 ? 0 : 8);
                    auto const bits = static_cast<uint16_t>(from.a[i / 2] >> (i % 2 * 16));
                    a[row][column] = elementAsFloat(bits, static_cast<T*>(nullptr));
                }
                for (int i = 0; i < 4; ++i)
                {
                    int const row = lane % 4 * 2 + i % 2 + (i < 2 ? 0 : 8);
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
                    for (int k = 0; k < 16; ++k)
                    {
                        sum += a[row][k] * b[k][column];
                    }
                    static_cast<Slot*>(slots[lane])->d[i] = sum;
                }
            }
        });
}

// Round to nearest, ties away from zero, to ten bits of fraction.
inline uint32_t roundToTf32(uint32_t bits)
{
    bool const isFinite = (bits & 0x7f800000U) != 0x7f800000U;
    return isFinite ? (bits + 0x1000U) & 0xffffe000U : bits;
}

inline void mmaM16N8K8(float (&d)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1)
{
    struct Slot
    {
        float* d;
        uint32_t const* a;
        uint32_t b[2];
    } slot{d, a, {b0, b1}};
    for (uint32_t const bits : {a[0], a[1], a[2], a[3], b0, b1})
    {
        if ((bits & 0x1fffU) != 0 && (bits & 0x7f800000U) != 0x7f800000U)
        {
            emulation::fail("mma.tf32: an operand is not a TF32 value"); // which would be undefined
        }
    }
    emulation::meetWarp("mma.tf32", &slot,
        [](void* const(&slots)[emulation::kWarpSize])
        {
            float a[16][8];
            float b[8][8];
            for (int lane = 0; lane < emulation::kWarpSize; ++lane)
            {
                Slot const& from = *static_cast<Slot const*>(slots[lane]);
                int const group = lane / 4;
                for (int i = 0; i < 4; ++i)
                {
                    a[group + i % 2 * 8][lane % 4 + i / 2 * 4] = emulation::asFloat(from.a[i]);
                }
                for (int i = 0; i < 2; ++i)
                {
                    b[lane % 4 + i * 4][group] = emulation::asFloat(from.b[i]);
                }
            }
            for (int lane = 0; lane < emulation::kWarpSize; ++lane)
            {
                for (int i = 0; i < 4; ++i)
                {
                    float& sum = static_cast<Slot*>(slots[lane])->d[i];
                    for (int k = 0; k < 8; ++k)
                    {
                        sum += a[lane / 4 + i / 2 * 8][k] * b[k][lane % 4 * 2 + i % 2];
                    }
                }
            }
        });
}

} // namespace trtkp::ptx

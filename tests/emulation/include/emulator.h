// Runs kernels written in CUDA on the CPU, one thread block after another, each CUDA thread a fiber.
//
// A fiber runs until it meets a barrier (of its block, or of its warp: warp-wide instructions are barriers that
// compute), then the scheduler picks another. It favours one random warp for a random while, often until that warp can
// run no further: a missing barrier stays hidden under a fair shuffle of all threads. The seed makes every run
// repeatable.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

struct uint3
{
    unsigned int x, y, z;
};

struct dim3
{
    unsigned int x, y, z;

    constexpr dim3(unsigned int x_ = 1, unsigned int y_ = 1, unsigned int z_ = 1)
        : x{x_}
        , y{y_}
        , z{z_}
    {
    }
};

// Those of the running fiber.
extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;

enum cudaError_t
{
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorNoDevice = 100,
    cudaErrorNoKernelImageForDevice = 209,
};

struct CUstream_st;
using cudaStream_t = CUstream_st*;

namespace emulation
{

constexpr int kWarpSize = 32;

// Seeds the scheduler; 0 runs threads in order.
void setSeed(uint64_t seed);

// Prints the message with block and thread and ends the process with kFailureStatus.
[[noreturn]] void fail(char const* format, ...) __attribute__((format(printf, 1, 2)));
constexpr int kFailureStatus = 70;

// From here on kernels are refused with that error, as those that a library does not hold for a GPU's architecture are;
// with cudaSuccess no longer.
void refuseKernels(cudaError_t error);
cudaError_t refusal();

// Kernels launched so far.
int launches();

// The compute capability that the device claims, 90 for 9.0, which it does at first; 0 if there is no device.
void setCapability(int capability);
int capability();

cudaError_t launch(dim3 grid, dim3 block, size_t sharedBytes, cudaStream_t stream, std::function<void()> const& kernel);

// The block's dynamic shared memory: exactly as large as asked for, full of NaN.
unsigned char* dynamicShared();

// __syncthreads
void blockBarrier();

int lane();

// Meets the other 31 lanes at the instruction `name`; the last to arrive calls compute with every lane's argument.
void meetWarp(char const* name, void* argument, std::function<void(void* const (&)[kWarpSize])> const& compute);

// cp.async: poisons the destination, and copies when the thread waits for the group.
void copyAsync(void* shared, void const* global, int bytes);
void copyAsyncCommit();
void copyAsyncWait(int pending);

} // namespace emulation

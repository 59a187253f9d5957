// One packed convolution as the kernels see it: geometry, lists, tensors, epilogue.
//
//   y[n, p, q, f] = act(b[f] + z[n, p, q, f] + sum over e in list(group of f) of w[row of f, e] * x[n, h_e, w_e, c_e])
//
// Activations are NHWC with a channel pitch of their own: what stands in channels at or beyond the tensor's own is
// never used when read, and is 0 when written. Every index fits int32, which the C interface checks before a launch.
#pragma once

#include <cstdint>

namespace trtkp
{

enum class DataType : int32_t
{
    kFLOAT32 = 0,
    kFLOAT16 = 1,
    kBFLOAT16 = 2,
};

// What `index` holds for a filter group, and how a packed column k becomes a tap and a channel.
enum class ListKind : int32_t
{
    kCHANNELS = 0, // L channels, K = R * S * L, tap-major; a padding entry is C
    kTAPS = 1,     // T taps, K = T * C, tap-major; a padding entry is R * S
    kENTRIES = 2,  // K entries of tap * 65536 + channel; a padding entry is R * S * 65536
};

// R + S at most, where a word holds a bit for each row and column of the kernel, and one more.
constexpr int32_t kMaxKernelSides = 31;

enum class Activation : int32_t
{
    kNONE = 0,
    kRELU = 1,
    kRELU6 = 2,
    kSILU = 3,
    kHARD_SWISH = 4,
    kLEAKY_RELU = 5,
};

struct ConvProblem
{
    // Geometry. C is the number of channels of one ONNX group, F the number of filters of all groups together.
    int32_t batch, height, width, channels;
    int32_t filters, kernelRows, kernelColumns;
    int32_t strideH, strideW;
    int32_t padTop, padLeft, padBottom, padRight;
    int32_t dilationH, dilationW;
    int32_t groups;
    int32_t outHeight, outWidth;

    // Lists: `index` is [listGroups, listLength], and gives a row `columns` columns. A row of `weight` holds
    // `storedColumns` values: one for each column, or with `metadata` 32 for every 64 columns.
    ListKind listKind;
    int32_t listGroups, listLength;
    int32_t rows, columns, storedColumns;

    // Distance in elements between two pixels.
    int32_t xPitch, yPitch, residualPitch;

    Activation activation;
    float alpha; // slope of kLEAKY_RELU below 0

    // bias and residual may be null. `bias` is indexed by filter, not by row.
    void const* x;
    void const* weight;
    int32_t const* metadata; // [ceil(rows / 16), ceil(columns / 64), 32], the places of 2:4 weights; null without
    int32_t const* index;
    int32_t const* rowGroup;
    int32_t const* rowFilter;
    void const* bias;
    void const* residual;
    void* y;

    // Split-K: that many blocks share the list of a tile, and leave float32 sums [splits, pixels, partialPitch], a
    // column for each packed row of every tile, to a second kernel. 1: no split, no partial sums.
    int32_t splits;
    int32_t partialPitch;
    float* partial;
};

// A dynamic pattern convolution: `conv` is that of one sample (its batch is 1) over a list of taps for all filters,
// with pointers to the first sample's part of each tensor.
struct DynamicProblem
{
    ConvProblem conv;
    int32_t samples, patterns;
    void const* kernels;   // [patterns, filters, columns]
    void const* attention; // [samples, patterns, filters]

    // Written by the first kernel and read by the second: conv.weight, conv.rowGroup and conv.rowFilter.
    void* weight; // [samples, filters, columns]
    int32_t* rowGroup;
    int32_t* rowFilter;
};

} // namespace trtkp

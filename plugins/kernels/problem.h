// One packed convolution as the kernels take it: geometry, lists, tensors and epilogue.
//
//   y[n, p, q, f] = act(b[f] + z[n, p, q, f] + sum over e in list(group of f) of w[row of f, e] * x[n, h_e, w_e, c_e])
//
// Activations are NHWC, and the distance between two pixels (the pitch) may be more than the number of channels. The
// values of the padding channels in between are never used, and are 0 in outputs. Every index fits int32, which the C
// interface checks before a launch.
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

// What `index` holds for a filter group, and how a packed column k encodes a tap and a channel.
enum class ListKind : int32_t
{
    kCHANNELS = 0, // L channels, K = R * S * L, tap-major; a padding entry is C
    kTAPS = 1,     // T taps, K = T * C, tap-major; a padding entry is R * S
    kENTRIES = 2,  // K entries of tap * 65536 + channel; a padding entry is R * S * 65536
};

// Largest R + S for kernels that keep a bit for each row and column of the kernel in a 32-bit word, and one for
// padding.
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
    // Geometry. C counts the channels of one ONNX group, F the filters of all groups.
    int32_t batch, height, width, channels;
    int32_t filters, kernelRows, kernelColumns;
    int32_t strideH, strideW;
    int32_t padTop, padLeft, padBottom, padRight;
    int32_t dilationH, dilationW;
    int32_t groups;
    int32_t outHeight, outWidth;

    // Lists: `index` is [listGroups, listLength] and stands for `columns` columns of a row. A row of `weight` has
    // `storedColumns` values: one for each column or, with `metadata`, 32 for every 64 columns.
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
    int32_t const* metadata; // [ceil(rows / 16), ceil(columns / 64), 32], places of 2:4 weights; null for dense ones
    int32_t const* index;
    int32_t const* rowGroup;
    int32_t const* rowFilter;
    void const* bias;
    void const* residual;
    void* y;

    // Split K: this many blocks share the list of a tile. They write float32 sums [splits, pixels, partialPitch], with
    // a column for each packed row of every tile, which a second kernel adds. 1 means no split and no partial sums.
    int32_t splits;
    int32_t partialPitch;
    float* partial;
};

// A dynamic pattern convolution. `conv` describes one sample (its batch is 1) with one list of taps for all filters.
// Its pointers are those of the first sample.
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

/* The plain C interface to the kernels: describe a layer, ask which tactics compute it, launch one.
 *
 * Activations are NHWC, and the distance between two pixels (the pitch) may be more than the number of channels. Values
 * in the padding channels of inputs are ignored; those of outputs are set to 0. Lists and weights are the inputs of an
 * operator of domain trtkp (trtkp/graph/ops.py), unchanged. A launch allocates nothing, does not synchronise, and can
 * be captured into a CUDA graph.
 *
 * Everything except the contents of device memory is checked before a launch. Lists are in device memory, so a launch
 * checks only their lengths. trtkpConvCheckLists checks their contents in host memory, once, before they are copied. A
 * wrong list that was not checked gives wrong values, but no kernel reads or writes outside the tensors because of it.
 *
 * Functions return a trtkpStatus, and trtkpLastError() returns the last message of the calling thread. They may be
 * called from any number of threads.
 */
#ifndef TRTKP_H
#define TRTKP_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define TRTKP_API __attribute__((visibility("default")))
#else
#define TRTKP_API
#endif

#ifdef __cplusplus
extern "C"
{
#endif

/* Increases with every change of this header that a caller can notice. */
#define TRTKP_INTERFACE_VERSION 2

    typedef enum trtkpStatus
    {
        TRTKP_OK = 0,
        TRTKP_INVALID_ARGUMENT = 1, /* the message names the field and its value */
        TRTKP_UNSUPPORTED = 2,      /* a valid layer that this tactic cannot compute */
        TRTKP_CUDA_ERROR = 3
    } trtkpStatus;

    typedef enum trtkpDataType
    {
        TRTKP_FLOAT32 = 0,
        TRTKP_FLOAT16 = 1,
        TRTKP_BFLOAT16 = 2
    } trtkpDataType;

    typedef enum trtkpListKind
    {
        TRTKP_CHANNELS = 0, /* KernelIndexConv: index [G, L], weight rows of R*S*L */
        TRTKP_TAPS = 1,     /* StripeConv: index [G, T], weight rows of T*C */
        TRTKP_ENTRIES = 2   /* PatternConv: index [G, K], tap * 65536 + channel, weight rows of K */
    } trtkpListKind;

    typedef enum trtkpActivation
    {
        TRTKP_NO_ACTIVATION = 0,
        TRTKP_RELU = 1,
        TRTKP_RELU6 = 2,
        TRTKP_SILU = 3,
        TRTKP_HARD_SWISH = 4,
        TRTKP_LEAKY_RELU = 5
    } trtkpActivation;

    /* The numbers of tactics never change. Not every number below TRTKP_TACTIC_COUNT is a tactic. */
    typedef enum trtkpTactic
    {
        TRTKP_TACTIC_REFERENCE = 0,   /* computes every layer; correct, not fast */
        TRTKP_TACTIC_MMA_128X128 = 1, /* tensor cores; pixels x packed rows of a thread block */
        TRTKP_TACTIC_MMA_128X64 = 2,
        TRTKP_TACTIC_MMA_64X64 = 3,
        TRTKP_TACTIC_MMA_64X32 = 4,
        TRTKP_TACTIC_MMA_64X64_SPLIT4 = 5, /* four blocks share a list, for few pixels; needs a workspace */
        TRTKP_TACTIC_MMA_64X64_SPLIT16 = 6,
        TRTKP_TACTIC_MMA_64X32_SPLIT4 = 7,
        /* Tensor cores with 64 columns per step; C must be a multiple of 8. */
        TRTKP_TACTIC_MMA_128X128_K64 = 8,
        TRTKP_TACTIC_MMA_128X64_K64 = 9,
        TRTKP_TACTIC_MMA_64X64_K64 = 10,
        TRTKP_TACTIC_MMA_128X32_K64 = 11,
        TRTKP_TACTIC_MMA_64X64_K64_SPLIT4 = 12,
        TRTKP_TACTIC_MMA_64X64_K64_SPLIT16 = 13,
        /* float32 on tensor cores, rounded to TF32; needs allowTf32. */
        TRTKP_TACTIC_TF32_128X64 = 14,
        TRTKP_TACTIC_TF32_64X64 = 15,
        TRTKP_TACTIC_TF32_64X64_SPLIT4 = 16,
        /* float32 on the CUDA cores. */
        TRTKP_TACTIC_SIMT_128X64 = 17,
        TRTKP_TACTIC_SIMT_64X32 = 18,
        TRTKP_TACTIC_SIMT_64X32_SPLIT4 = 19,
        /* Gathers of single elements: any list, any channel count, any pitch. */
        TRTKP_TACTIC_SINGLE_128X64 = 20,
        TRTKP_TACTIC_SINGLE_128X32 = 21,
        TRTKP_TACTIC_SINGLE_128X16 = 22,
        TRTKP_TACTIC_SINGLE_128X32_SPLIT4 = 23,
        TRTKP_TACTIC_SINGLE_TF32_128X64 = 24, /* needs allowTf32 */
        TRTKP_TACTIC_SINGLE_SIMT_64X32 = 25,
        TRTKP_TACTIC_DIRECT = 26, /* CUDA cores; for filter groups of a few filters */
        /* Sparse tensor cores, for 2:4 weights. */
        TRTKP_TACTIC_SPARSE_128X128 = 32,
        TRTKP_TACTIC_SPARSE_128X64 = 33,
        TRTKP_TACTIC_SPARSE_64X64 = 34,
        TRTKP_TACTIC_SPARSE_64X64_SPLIT4 = 35,
        TRTKP_TACTIC_SPARSE_SINGLES_64X64 = 36, /* any list, gathered channel by channel */
        TRTKP_TACTIC_SPARSE_SINGLES_64X128 = 37,
        /* trtkpDynamic: the weights of every sample, then the reference kernel or tensor cores. */
        TRTKP_TACTIC_DYNAMIC_REFERENCE = 48,
        TRTKP_TACTIC_DYNAMIC_128X64 = 49,
        TRTKP_TACTIC_DYNAMIC_64X64 = 50,
        TRTKP_TACTIC_COUNT = 51
    } trtkpTactic;

    typedef struct trtkpConvDesc
    {
        uint32_t structSize;       /* sizeof(trtkpConvDesc) */
        uint32_t interfaceVersion; /* TRTKP_INTERFACE_VERSION */

        int32_t dataType; /* of x, weight, bias, residual and y */
        int32_t batch, height, width;
        int32_t channels;                  /* of one ONNX group: x has channels * groups */
        int32_t filters;                   /* of all groups */
        int32_t kernelRows, kernelColumns; /* at most 64 taps */
        int32_t strideH, strideW;
        int32_t padTop, padLeft, padBottom, padRight;
        int32_t dilationH, dilationW;
        int32_t groups;

        int32_t listKind;
        int32_t listGroups; /* G, filter groups */
        int32_t listLength; /* L, T or K */
        int32_t rows;       /* packed rows, padding rows included */
        /* 8 promises that all lists consist of blocks of eight consecutive channels of one tap that start at a multiple
         * of 8. The last block of a tap may run past C; its entries there are padding. 1 promises nothing.
         * trtkpConvCheckLists finds the value. For lists of taps it is 8 if C is a multiple of 8. */
        int32_t listBlock;

        int32_t xPitch, yPitch;
        int32_t residualPitch; /* 0 without a residual */
        int32_t hasBias;       /* 0 or 1 */
        int32_t hasResidual;   /* 0 or 1; [N, P, Q, filters], added before the activation */
        int32_t activation;
        float alpha;       /* slope of TRTKP_LEAKY_RELU below 0 */
        int32_t allowTf32; /* 0 or 1: float32 products may be rounded to TF32, with relative errors of about 5e-4 */

        /* 1: weights are 2:4, as in the operators with "24" in their name. K is then a multiple of 4, and every four
         * columns of a list, counted from its start, belong to one tap. */
        int32_t twoFour;
    } trtkpConvDesc;

    /* Device memory. x, weight, bias, residual and y are aligned to 16 bytes, and y overlaps none of the others. */
    typedef struct trtkpConvTensors
    {
        uint32_t structSize;     /* sizeof(trtkpConvTensors) */
        uint32_t reserved;       /* 0 */
        void const* x;           /* [N, H, W, xPitch] */
        void const* weight;      /* [rows, K]; 2:4 [rows, 32 * S] with S = ceil(K / 64) */
        int32_t const* index;    /* [G, listLength] */
        int32_t const* rowGroup; /* [rows], ascending */
        int32_t const*
            rowFilter;    /* [rows]; every filter once, F for a padding row, which follow the others of their group */
        void const* bias; /* [F], or null without a bias */
        void const* residual; /* [N, P, Q, residualPitch], or null without one */
        void* y;              /* [N, P, Q, yPitch] */
        void* workspace;      /* aligned to 16 bytes; may be null if trtkpConvWorkspaceBytes is 0 */
        size_t workspaceBytes;
        int32_t const* metadata; /* 2:4: [ceil(rows / 16), S, 32], aligned to 16 bytes; null for dense weights */
    } trtkpConvTensors;

    /* DynamicPatternConv: the weights of a sample are the sum of `patterns` packed kernels, weighted by its attention.
     */
    typedef struct trtkpDynamicDesc
    {
        uint32_t structSize;       /* sizeof(trtkpDynamicDesc) */
        uint32_t interfaceVersion; /* TRTKP_INTERFACE_VERSION */
        int32_t patterns;          /* P */
        uint32_t reserved;         /* 0 */
        /* One list of taps: TRTKP_TAPS, listGroups and groups 1, rows as many as filters, twoFour 0. */
        trtkpConvDesc conv;
    } trtkpDynamicDesc;

    /* Device memory, with the alignment and overlap rules of trtkpConvTensors. */
    typedef struct trtkpDynamicTensors
    {
        uint32_t structSize;   /* sizeof(trtkpDynamicTensors) */
        uint32_t reserved;     /* 0 */
        void const* x;         /* [N, H, W, xPitch] */
        void const* weight;    /* [P, F, K] */
        void const* attention; /* [N, P, F] */
        int32_t const* index;  /* [1, T] */
        void const* bias;      /* [F], or null without a bias */
        void const* residual;  /* [N, P, Q, residualPitch], or null without one */
        void* y;               /* [N, P, Q, yPitch] */
        void* workspace;       /* aligned to 16 bytes; holds the weights of every sample */
        size_t workspaceBytes;
    } trtkpDynamicTensors;

    /* The TRTKP_INTERFACE_VERSION that the library was compiled with. */
    TRTKP_API uint32_t trtkpInterfaceVersion(void);

    /* The last error of the calling thread, in one line. Valid until the thread's next call; never null. */
    TRTKP_API char const* trtkpLastError(void);

    /* The name of a tactic, such as "mma_128x64"; null if the number is not one. */
    TRTKP_API char const* trtkpTacticName(int32_t tactic);

    /* Height P and width Q of the output. */
    TRTKP_API trtkpStatus trtkpConvOutputSize(trtkpConvDesc const* desc, int32_t* outHeight, int32_t* outWidth);

    /* Checks lists in host memory against desc, and writes the listBlock that they may promise. desc.listBlock is not
     * read. */
    TRTKP_API trtkpStatus trtkpConvCheckLists(trtkpConvDesc const* desc, int32_t const* index, int32_t const* rowGroup,
        int32_t const* rowFilter, int32_t* listBlock);

    /* Checks metadata in host memory: the two places of every quad must be in ascending order. */
    TRTKP_API trtkpStatus trtkpConvCheckMetadata(trtkpConvDesc const* desc, int32_t const* metadata);

    /* Writes the tactics that can compute the layer, at most `capacity` of them, and how many it wrote to *count. */
    TRTKP_API trtkpStatus trtkpConvTactics(
        trtkpConvDesc const* desc, int32_t* tactics, int32_t capacity, int32_t* count);

    /* Bytes of workspace that a launch of the tactic needs; 0 for most. */
    TRTKP_API trtkpStatus trtkpConvWorkspaceBytes(trtkpConvDesc const* desc, int32_t tactic, size_t* bytes);

    /* Enqueues the convolution on a stream (cudaStream_t) of the current device. */
    TRTKP_API trtkpStatus trtkpConvLaunch(
        trtkpConvDesc const* desc, int32_t tactic, trtkpConvTensors const* tensors, void* stream);

    /* The same three functions for trtkpDynamicDesc, which has its own tactics. A launch enqueues two kernels. */
    TRTKP_API trtkpStatus trtkpDynamicTactics(
        trtkpDynamicDesc const* desc, int32_t* tactics, int32_t capacity, int32_t* count);

    TRTKP_API trtkpStatus trtkpDynamicWorkspaceBytes(trtkpDynamicDesc const* desc, int32_t tactic, size_t* bytes);

    TRTKP_API trtkpStatus trtkpDynamicLaunch(
        trtkpDynamicDesc const* desc, int32_t tactic, trtkpDynamicTensors const* tensors, void* stream);

#ifdef __cplusplus
}
#endif

#endif

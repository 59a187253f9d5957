// TensorRT's plugin interfaces: from its own headers where CMake found them, else from ours.
#pragma once

#ifdef TRTKP_TENSORRT_HEADERS
#include <NvInferRuntime.h>
#else
#include "declarations.h"
#endif

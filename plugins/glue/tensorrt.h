// TensorRT's plugin interfaces: from its own headers if CMake has found them, otherwise from declarations.h.
#pragma once

#ifdef TRTKP_TENSORRT_HEADERS
#include <NvInferRuntime.h>
#else
#include "declarations.h"
#endif

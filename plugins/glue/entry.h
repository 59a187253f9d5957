// The functions of libtrtkp.so that concern TensorRT. The others are in trtkp.h.
#pragma once

#include "tensorrt.h"

#define TRTKP_ENTRY extern "C" __attribute__((visibility("default")))

// The entry points that IPluginRegistry::loadLibrary and engines with embedded plugins look for.
TRTKP_ENTRY nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count);
TRTKP_ENTRY void setLoggerFinder(void* finder);

// Registers every creator with the TensorRT of the process. Returns the number of registries that have them now, 0 if
// no TensorRT is loaded, or -1 if a registry refused one. A creator that is registered already is no error.
TRTKP_ENTRY int32_t trtkpRegisterPlugins();

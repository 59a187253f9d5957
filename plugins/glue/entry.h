// The functions of libtrtkp.so that are about TensorRT. trtkp.h has the others.
#pragma once

#include "tensorrt.h"

#define TRTKP_ENTRY extern "C" __attribute__((visibility("default")))

// What IPluginRegistry::loadLibrary and engines that embed the library look for.
TRTKP_ENTRY nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count);
TRTKP_ENTRY void setLoggerFinder(void* finder);

// Registers every creator with the TensorRT of the process. Returns the number of registries that now have them, 0
// where no TensorRT is loaded, -1 where one has refused. A creator that was there before is no error.
TRTKP_ENTRY int32_t trtkpRegisterPlugins();

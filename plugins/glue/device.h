// The GPU that TensorRT builds for or runs on.
#pragma once

#include <cstdint>

namespace trtkp::glue
{

// The compute capability of the current device, 90 for 9.0; 0 if there is none.
int32_t currentCapability();

} // namespace trtkp::glue

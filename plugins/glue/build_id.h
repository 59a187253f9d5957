// What tells one build of this library from another.
#pragma once

#include <string>

namespace trtkp::glue
{

// The library's GNU build ID in hexadecimal, a hash of all that is linked into it, kernels included.
std::string buildId();

} // namespace trtkp::glue

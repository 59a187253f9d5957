// The build ID, which tells one build of this library from another.
#pragma once

#include <string>

namespace trtkp::glue
{

// The library's GNU build ID in hexadecimal. It is a hash of everything linked into the library, kernels included.
std::string buildId();

} // namespace trtkp::glue

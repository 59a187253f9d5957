// What TensorRT's parser matches against a node: namespace and version as of trtkp/graph/ops.py.
#pragma once

namespace trtkp::glue
{

inline constexpr char kNamespace[] = "trtkp";
inline constexpr char kVersion[] = "1";

} // namespace trtkp::glue

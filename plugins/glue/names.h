// The namespace and version that TensorRT's parser compares with a node, as in trtkp/graph/ops.py.
#pragma once

namespace trtkp::glue
{

inline constexpr char kNamespace[] = "trtkp";
inline constexpr char kVersion[] = "1";

} // namespace trtkp::glue

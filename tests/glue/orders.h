// Random legal orders of the calls that TensorRT makes on a plugin.

#pragma once

#include "case.h"

#include <string>

namespace host
{

// Plays an order for every seed in [first, last) and prints how many calls it made. Ends the program where a plugin
// refuses a legal call or computes a wrong result, which CASE.want has: [N, P, Q, F] in float64.
int playOrders(IPluginCreatorV3One& creator, Case const& given, std::string const& path, int first, int last);

} // namespace host

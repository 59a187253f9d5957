// What the tables of static and of dynamic tactics know of each other.
#pragma once

#include "layer.h"

#include <cstdint>

namespace trtkp::capi
{

// Why a tactic of trtkpConv cannot compute a layer; null if it can.
char const* whyNot(int32_t tactic, Layer const& layer);

// The name of a tactic of trtkpDynamic; null if the number is not one.
char const* dynamicTacticName(int32_t tactic);

} // namespace trtkp::capi

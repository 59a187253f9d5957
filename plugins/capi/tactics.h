// What the tables of tactics tell each other.
#pragma once

#include "layer.h"

#include <cstdint>

namespace trtkp::capi
{

// Why a tactic of trtkpConv does not take a layer; null if it does.
char const* whyNot(int32_t tactic, Layer const& layer);

// The name of a tactic of trtkpDynamic; null for another number.
char const* dynamicTacticName(int32_t tactic);

} // namespace trtkp::capi

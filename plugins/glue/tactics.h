// Tactics by their names: the partner of a split tactic, and what a plan has pinned for a node.
//
// A pin names the tactic to use on a GPU of a compute capability: "sm_90=mma_64x64_split4", with ';' between several.
// Names stay when numbers change. Pins exist because TensorRT times tactics on made-up inputs: the time of a kernel
// depends on what the lists hold, and a plan knows that.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace trtkp::glue
{

// The number of a tactic in the C interface; -1 if there is none of this name.
int32_t tacticOf(std::string_view name);

// The tactic with the same tile that does not split the list and needs no workspace; -1 for other tactics.
int32_t unsplitOf(int32_t tactic);

// Throws Error unless the text consists of pins, each of another capability.
void checkPins(std::string_view pins);

// The name that is pinned for a compute capability (90 for 9.0); empty if there is none.
std::string_view pinnedFor(std::string_view pins, int32_t capability);

} // namespace trtkp::glue

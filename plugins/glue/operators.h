// The operators of domain trtkp, as in the table of trtkp/graph/ops.py. Each has a creator.
#pragma once

#include "../capi/trtkp.h"

#include <string>
#include <vector>

namespace trtkp::glue
{

struct Family;

// What an operator takes an input for, which decides the type and memory format that TensorRT must give the tensor.
enum class InputRole
{
    kACTIVATION, // type and format of X
    kPLAIN,      // type of X, linear
    kINDEX,      // int32, linear
};

struct Input
{
    char const* name;
    InputRole role;
};

// The most inputs that an operator has: those of a static list with a residual and metadata.
inline constexpr int32_t kMaxInputs = 8;

struct Operator
{
    std::string name; // family, "24" for 2:4 weights, "Add" for a residual, activation
    Family const* family;
    bool twoFour;
    bool hasResidual;
    trtkpActivation activation;
    std::vector<Input> inputs;
};

// All operators. They live as long as the library.
std::vector<Operator> const& operators();

} // namespace trtkp::glue

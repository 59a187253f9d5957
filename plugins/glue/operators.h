// The operators of domain trtkp: the table of trtkp/graph/ops.py, which makes the creators.
#pragma once

#include "../capi/trtkp.h"

#include <string>
#include <vector>

namespace trtkp::glue
{

struct Family;

// How TensorRT holds a tensor.
enum class Form
{
    kACTIVATION, // of X's type and format
    kPLAIN,      // of X's type, linear
    kINDEX,      // int32, linear
};

struct Input
{
    char const* name;
    Form form;
};

struct Operator
{
    std::string name; // family, "24" for 2:4 weights, "Add" with a residual, activation
    Family const* family;
    bool twoFour;
    bool hasResidual;
    trtkpActivation activation;
    std::vector<Input> inputs;
};

// Every operator; lives as long as the library.
std::vector<Operator> const& operators();

} // namespace trtkp::glue

#include "operators.h"

#include "family.h"

#include <utility>

namespace trtkp::glue
{
namespace
{

std::pair<char const*, trtkpActivation> constexpr kActivations[] = {
    {"", TRTKP_NO_ACTIVATION},
    {"Relu", TRTKP_RELU},
    {"Relu6", TRTKP_RELU6},
    {"Silu", TRTKP_SILU},
    {"HardSwish", TRTKP_HARD_SWISH},
    {"LeakyRelu", TRTKP_LEAKY_RELU},
};

std::vector<Operator> makeOperators()
{
    std::vector<Operator> all;
    for (Family const* const family : {&kKernelIndexConv, &kStripeConv, &kPatternConv, &kDynamicPatternConv})
    {
        for (int twoFour = 0; twoFour <= (family->hasTwoFour ? 1 : 0); ++twoFour)
        {
            for (bool const hasResidual : {false, true})
            {
                for (auto const& [suffix, activation] : kActivations)
                {
                    std::string name
                        = std::string{family->name} + (twoFour == 1 ? "24" : "") + (hasResidual ? "Add" : "") + suffix;
                    all.push_back({std::move(name), family, twoFour == 1, hasResidual, activation,
                        family->inputs(hasResidual, twoFour == 1)});
                }
            }
        }
    }
    return all;
}

} // namespace

std::vector<Operator> const& operators()
{
    // Never destroyed: a registry may still use creators after the library's own destructors have run.
    static auto const* const all = new std::vector<Operator>{makeOperators()};
    return *all;
}

} // namespace trtkp::glue

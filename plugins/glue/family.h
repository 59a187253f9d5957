// What differs between the four kinds of convolution: their inputs, their checks, and how they are launched.
#pragma once

#include "operators.h"
#include "settings.h"
#include "tensorrt.h"

#include <memory>
#include <vector>

namespace trtkp::glue
{

// A layer with known shapes, as the C interface takes it. It is immutable, so clones of a plugin share it.
class Call
{
public:
    virtual ~Call() = default;

    // The tactics that can compute the layer, by their numbers in the C interface.
    [[nodiscard]] virtual std::vector<int32_t> tactics() const = 0;

    [[nodiscard]] virtual size_t workspaceBytes(int32_t tactic) const = 0;

    // Launches a tactic. Inputs are in the operator's order. It allocates nothing, except an exception if it fails.
    virtual void launch(int32_t tactic, void const* const* inputs, void* output, void* workspace, size_t bytes,
        cudaStream_t stream) const = 0;
};

struct Family
{
    char const* name;
    bool hasTwoFour;

    std::vector<Input> (*inputs)(bool hasResidual, bool twoFour);

    // The call for inputs whose sizes are all known. Throws Error if a tensor has a shape that the layer does not take.
    std::shared_ptr<Call const> (*call)(Operator const& op, Settings const& settings,
        std::vector<nvinfer1::PluginTensorDesc> const& inputs, nvinfer1::PluginTensorDesc const& output);
};

extern Family const kKernelIndexConv;
extern Family const kStripeConv;
extern Family const kPatternConv;
extern Family const kDynamicPatternConv;

} // namespace trtkp::glue

"""The passes for ``DynamicPatternConv``: add its body, fold what follows it, fuse its epilogue, inline its body.

The planner does not plan this operator. Its kernel is computed for every sample, so there is no stored weight that
could be packed in another way. ``model.onnx`` has the operator with its epilogue, for a plugin; ``engine.onnx`` has
its body, inlined.
"""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from trtkp.graph.edit import add_initializer, constant, finish, only_consumer, replace_nodes
from trtkp.graph.inline import inline_functions
from trtkp.graph.layers import dynamic_nodes
from trtkp.graph.ops import DOMAIN, DYNAMIC, VERSION, OpName, function
from trtkp.graph.passes.batch_norm import scale_and_shift
from trtkp.graph.passes.pack import find_epilogue

__all__ = ["add_bodies", "expand_dynamic", "fold_dynamic", "fuse_dynamic"]

_WEIGHT, _BIAS = 1, 4


def add_bodies(model: ir.Model) -> None:
    """Add the function of every dynamic operator that the model uses."""
    nodes = dynamic_nodes(model)
    for op_type in sorted({node.op_type for node in nodes}):
        body = function(OpName.parse(op_type), model.graph.opset_imports[""])
        model.functions[body.identifier()] = body
    if nodes:
        model.graph.opset_imports[DOMAIN] = VERSION


def fold_dynamic(model: ir.Model) -> int:
    """Fold batch normalisation and additions of a constant into the patterns; returns how many were folded.

    A factor per filter commutes with the sum over the patterns: ``s (sum_p A_p W_p) = sum_p A_p (s W_p)``. Arithmetic
    is float64, rounded once to the weight's type.
    """
    folded = 0
    waiting = dynamic_nodes(model)
    while waiting:
        node = waiting.pop()
        follower = only_consumer(node.outputs[0])
        weight, bias = constant(node.inputs[_WEIGHT]), constant(node.inputs[_BIAS])
        if follower is None or weight is None or bias is None:
            continue
        found = scale_and_shift(node.outputs[0], follower, (weight.shape[1], 1, 1))
        if found is None:
            continue
        scale, shift = found
        graph = model.graph
        inputs = list(node.inputs)
        name = node.inputs[_WEIGHT].name  # type: ignore[union-attr]  # every input is given
        inputs[_WEIGHT] = add_initializer(graph, f"{name}.folded", (weight * scale[:, None]).astype(weight.dtype))
        inputs[_BIAS] = add_initializer(graph, f"{name}.bias", (bias * scale + shift).astype(bias.dtype))
        merged = ir.Node(node.domain, node.op_type, inputs, node.attributes.values(), name=node.name)
        replace_nodes([node, follower], [merged], follower.outputs[0], merged.outputs[0])
        waiting.append(merged)  # one more may follow it
        folded += 1
    finish(model)
    return folded


def fuse_dynamic(model: ir.Model) -> None:
    """Fuse residual Add and activation into every dynamic operator, unless something else reads a value in between."""
    for node in dynamic_nodes(model):
        epilogue = find_epilogue(node)
        if not epilogue.nodes:
            continue
        name = OpName(DYNAMIC, epilogue.residual is not None, epilogue.activation)
        inputs = [*node.inputs, epilogue.residual] if epilogue.residual is not None else list(node.inputs)
        attributes = list(node.attributes.values())
        if epilogue.alpha is not None:
            attributes.append(ir.AttrFloat32("alpha", epilogue.alpha))
        fused = ir.Node(DOMAIN, str(name), inputs, attributes, name=node.name)
        replace_nodes([node, *epilogue.nodes], [fused], epilogue.output, fused.outputs[0])
    add_bodies(model)
    finish(model)


def expand_dynamic(model: ir.Model) -> None:
    """Replace every dynamic operator by its body, in standard operators, and fold the constants in it."""
    if not dynamic_nodes(model):
        return
    from onnxscript import optimizer

    before = set(model.graph)
    # The bodies of plugins must stay functions, and the inliner takes all functions that it finds.
    others = {key: body for key, body in model.functions.items() if not body.name.startswith(DYNAMIC)}
    for key in others:
        del model.functions[key]
    inline_functions(model)
    model.functions.update(others)
    optimizer.fold_constants(model, should_fold=lambda node: False if node in before else None)
    finish(model)
    common_passes.RemoveUnusedOpsetsPass()(model)

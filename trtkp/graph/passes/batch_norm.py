"""The pass that folds BatchNormalization and additions of a constant into the convolution before them.

It runs after the masks are applied: folding scales whole filters, so a mask is the same before and after.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from trtkp.graph.edit import (
    WEIGHT,
    add_initializer,
    constant,
    finish,
    input_at,
    only_consumer,
    replace_nodes,
    weight_name,
)

__all__ = ["fold_batch_norm", "scale_and_shift"]


def fold_batch_norm(model: ir.Model) -> int:
    """Fold ``Conv -> BatchNormalization`` and ``Conv -> Add(constant per filter)``; returns how many were folded.

        y = gamma (W*x + b - mean) / sqrt(var + eps) + beta
          = (W s)*x + (b - mean) s + beta,    s = gamma / sqrt(var + eps), one factor per filter

    A node is folded only if nothing else reads the convolution's output and BatchNormalization is in inference mode. A
    weight that serves another node too is copied. The new node remembers the parameter that its weight came from
    (`edit.WEIGHT`). Arithmetic is float64, rounded once to the weight's type.
    """
    folded = 0
    convolutions = [node for node in model.graph if node.op_type == "Conv" and node.domain == ""]
    while convolutions:
        conv = convolutions.pop()
        follower = only_consumer(conv.outputs[0])
        scale_shift = _of_convolution(conv, follower) if follower is not None else None
        if follower is not None and scale_shift is not None:
            convolutions.append(_fold(model.graph, conv, follower, *scale_shift))  # one more may follow it
            folded += 1
    finish(model)  # folded nodes and weights must not be seen by later passes
    return folded


def _of_convolution(conv: ir.Node, follower: ir.Node) -> tuple[np.ndarray, np.ndarray] | None:
    weight, bias = constant(input_at(conv, 1)), input_at(conv, 2)
    if weight is None or (bias is not None and constant(bias) is None):
        return None
    return scale_and_shift(conv.outputs[0], follower, (weight.shape[0], *(1,) * (weight.ndim - 2)))


def scale_and_shift(
    value: ir.Value, follower: ir.Node, per_filter: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray] | None:
    """The factor and the addend, float64 [F] each, that a node applies to the filters of a convolution's output.

    None if the node does anything else.

    Args:
        value: the convolution's output.
        follower: its only reader.
        per_filter: shape of a constant with one value per filter, (F, 1, 1).
    """
    filters = per_filter[0]
    if follower.op_type == "BatchNormalization" and follower.domain == "":
        if follower.inputs[0] is not value or follower.attributes.get_int("training_mode", 0) == 1:
            return None
        statistics = [constant(given) for given in follower.inputs[1:5]]
        if any(given is None or given.shape != (filters,) for given in statistics):
            return None
        gamma, beta, mean, variance = (np.asarray(given, np.float64) for given in statistics)
        epsilon = follower.attributes.get_float("epsilon", 1e-5)
        scale = gamma / np.sqrt(variance + epsilon)
        return scale, beta - mean * scale
    if follower.op_type == "Add" and follower.domain == "":
        other = follower.inputs[1] if follower.inputs[0] is value else follower.inputs[0]
        addend = constant(other)
        if addend is None or addend.shape not in (per_filter, (1, *per_filter)):
            return None
        return np.ones(filters), np.asarray(addend, np.float64).ravel()
    return None


def _fold(graph: ir.Graph, conv: ir.Node, follower: ir.Node, scale: np.ndarray, shift: np.ndarray) -> ir.Node:
    name = weight_name(conv)
    weight, bias = conv.inputs[1], constant(input_at(conv, 2))
    values = constant(weight)
    assert weight is not None
    assert values is not None
    assert name is not None
    bias = np.zeros(len(scale)) if bias is None else np.asarray(bias, np.float64)
    new_bias = add_initializer(graph, f"{name}.bias", (bias * scale + shift).astype(values.dtype))
    if not np.all(scale == 1):
        folded = (values * scale.reshape(-1, *(1,) * (values.ndim - 1))).astype(values.dtype)
        weight = add_initializer(graph, f"{name}.folded", folded)
    merged = ir.Node(
        "",
        "Conv",
        [conv.inputs[0], weight, new_bias],
        conv.attributes.values(),
        name=conv.name,
        metadata_props={**conv.metadata_props, WEIGHT: name},
    )
    replace_nodes([conv, follower], [merged], follower.outputs[0], merged.outputs[0])
    return merged

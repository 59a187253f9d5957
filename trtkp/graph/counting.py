"""Counts that some papers use instead of the common ones of `trtkp.index.accounting`.

They are the statistics of batch normalisation, its elements, elementwise operations, and weights without biases.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import onnx_ir as ir

from trtkp.graph.edit import constant, input_at, ints
from trtkp.graph.layers import product_weight, run_shapes
from trtkp.shapes import Shape

__all__ = ["batch_norm_elements", "elementwise_operations", "product_weights", "statistics"]

_POOLS = ("MaxPool", "AveragePool")
_GLOBAL = ("GlobalAveragePool", "GlobalMaxPool", "ReduceMean")
_BIASED = ("Conv", "Gemm")
_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def statistics(model: ir.Model) -> int:
    """Number of running means and variances of all batch normalisations. They are not learnable parameters."""
    return sum(
        value.size
        for node in model.graph
        if node.op_type == "BatchNormalization" and node.domain == ""
        for value in (constant(input_at(node, 3)), constant(input_at(node, 4)))
        if value is not None
    )


def batch_norm_elements(model: ir.Model, shapes: Mapping[str, Shape]) -> int:
    """Number of output elements of all batch normalisations, for inputs of the given shapes."""
    names = [
        str(node.outputs[0].name) for node in model.graph if node.op_type == "BatchNormalization" and node.domain == ""
    ]
    sizes = run_shapes(model, shapes, names)
    return sum(prod(sizes[name]) for name in names)


def product_weights(model: ir.Model) -> int:
    """Number of weights of convolutions and fully connected layers. Shared weights count once, biases do not count."""
    nodes = [node for node in model.graph if node.domain == "" and node.op_type in _PRODUCTS]
    found = [product_weight(input_at(node, index)) for node in nodes for index in (0, 1)]
    return sum({name: weight.size for name, weight in filter(None, found)}.values())


def elementwise_operations(model: ir.Model, shapes: Mapping[str, Shape]) -> int:
    """Operations of one sample other than multiply-accumulates, as the authors of ASKs count them.

    They count 2 per element of BatchNorm2d, 1 per output of ReLU, 1 per added bias, the size of the window per output
    of a pooling, and 1 per input of a global pooling.

    Args:
        model: the graph.
        shapes: input name to shape, for one sample.
    """
    nodes = [node for node in model.graph if node.domain == ""]
    wanted = [str(value.name) for node in nodes for value in (*node.inputs[:1], *node.outputs[:1]) if value is not None
              and node.op_type in ("BatchNormalization", "Relu", *_POOLS, *_GLOBAL, *_BIASED)]  # fmt: skip
    sizes = run_shapes(model, shapes, list(dict.fromkeys(wanted)))
    total = 0
    for node in nodes:
        source = input_at(node, 0)
        into, out = (sizes.get(str(value.name), ()) if value is not None else () for value in (source, node.outputs[0]))
        if node.op_type == "BatchNormalization" and len(out) == 4:
            total += 2 * prod(out)
        elif node.op_type == "Relu":
            total += prod(out)
        elif node.op_type in _POOLS:
            total += prod(ints(node, "kernel_shape", ())) * prod(out)
        elif node.op_type in _GLOBAL and len(into) == 4:
            total += prod(into)
        elif node.op_type in _BIASED and input_at(node, 2) is not None:
            total += prod(out)
    return total

"""The convolutions of a loaded model and their weights: the first step of every pruning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trtkp.errors import InputError
from trtkp.shapes import Profile, smallest_samples

if TYPE_CHECKING:
    import onnx_ir as ir

    from trtkp.graph.layers import LayerTable
    from trtkp.model import SourceModel

__all__ = ["matrix_names", "named_graph", "read_layers"]


def named_graph(source: SourceModel) -> ir.Model:
    """A copy of the source graph in which every node has a unique name."""
    from onnx_ir.passes.common import NameFixPass, ShapeInferencePass

    graph = source.graph()
    if source.format == "onnx":
        NameFixPass()(graph)  # plans and layer tables are keyed by the names of nodes
        ShapeInferencePass()(graph)  # a residual Add is fused only where both shapes are known
    return graph


def read_layers(
    graph: ir.Model, source: SourceModel, profile: Profile, floating: str = "fp32"
) -> tuple[LayerTable, dict[str, npt.NDArray[Any]]]:
    """The layer table of a source graph, and the weight of every layer by parameter name.

    Args:
        graph: the result of `named_graph`.
        source: the model.
        profile: input shapes. The table is made for one sample.
        floating: precision of the engine, ``fp32`` or ``fp16``.

    Raises:
        InputError: weights have a type that engines do not take, or hold NaN.
    """
    from trtkp.graph.layers import conv_layers

    _check_weights(graph, source, floating)
    table = conv_layers(graph, smallest_samples(source.inputs, profile))
    weights = {
        layer.name: value.const_value.numpy()
        for layer in table.layers
        if (value := graph.graph.initializers[layer.name]).const_value is not None
    }
    return table, weights


def matrix_names(graph: ir.Model) -> list[str]:
    """Parameter names of the weights of fully connected layers, in the order of the parameters.

    Such a weight is a matrix that is only used as a factor of products whose other factor is no constant. It may be
    transposed first, as PyTorch exports a layer on ``[N, ..., C]``.
    """
    return [
        name
        for name, value in graph.graph.initializers.items()
        if value.shape is not None and len(value.shape) == 2 and _only_multiplies(graph, value)
    ]


def _only_multiplies(graph: ir.Model, value: ir.Value) -> bool:
    readers = [use.node for use in value.uses()]
    return bool(readers) and all(_multiplies(graph, node, value) for node in readers)


def _multiplies(graph: ir.Model, node: ir.Node, value: ir.Value) -> bool:
    if node.domain == "" and node.op_type == "Transpose":
        return _only_multiplies(graph, node.outputs[0])
    factors = [factor for factor in node.inputs[:2] if factor is not None and factor is not value]
    return (
        node.domain == ""
        and node.op_type in ("Gemm", "MatMul")
        and bool(factors)
        and not any(_is_constant(graph, factor) for factor in factors)
    )


def _is_constant(graph: ir.Model, value: ir.Value) -> bool:
    node = value.producer()
    if node is not None and node.op_type == "Transpose" and node.inputs[0] is not None:
        return _is_constant(graph, node.inputs[0])
    return value.name in graph.graph.initializers or (node is not None and node.op_type == "Constant")


def _check_weights(graph: ir.Model, source: SourceModel, floating: str) -> None:
    """Check that weights have a type of the precision, and that they are numbers."""
    path = source.path
    for name, value in graph.graph.initializers.items():
        dtype = str(value.dtype)
        if dtype == "FLOAT16" and floating == "fp32":
            raise InputError("the model is in half precision", file=path, remedy="use --precision fp16")
        read = {use.node.op_type for use in value.uses()}
        if dtype in ("BFLOAT16", "DOUBLE") and read & {"Conv", "ConvTranspose", "Gemm", "MatMul"}:
            raise InputError(
                f"the model is in {dtype.lower()}, engines are in float32 or float16",
                file=path,
                layer=name,
                remedy="convert it with model.float() and export it again",
            )
        if dtype in ("FLOAT", "FLOAT16") and value.const_value is not None:
            weight = value.const_value.numpy()
            if np.isnan(weight).any():
                raise InputError(
                    "its values are not all numbers (NaN)",
                    file=path,
                    layer=name,
                    remedy="take a checkpoint from before the training diverged",
                )

"""The convolutions of a loaded model with their weights: what every pruning begins with."""

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
    """A copy of the source graph, every node with a name of its own."""
    from onnx_ir.passes.common import NameFixPass, ShapeInferencePass

    graph = source.graph()
    if source.format == "onnx":
        NameFixPass()(graph)  # plans are kept by the names of nodes
        ShapeInferencePass()(graph)  # epilogues are fused where shapes are known
    return graph


def read_layers(
    graph: ir.Model, source: SourceModel, profile: Profile, floating: str = "fp32"
) -> tuple[LayerTable, dict[str, npt.NDArray[Any]]]:
    """The layer table of a source graph, and the weight of every layer by parameter name.

    Args:
        graph: as `named_graph` gives it.
        source: the model.
        profile: input shapes; the table is made for one sample.
        floating: precision that the graph is to have, fp32 or fp16.

    Raises:
        InputError: weights of a type that no engine has, or that are no numbers.
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
    """Parameter names of the weights [outputs, inputs] of fully connected layers, in graph order.

    Those of a layer on ``[N, ..., C]`` are transposed in front of a product.
    """
    products = [node for node in graph.graph if node.domain == "" and node.op_type in ("Gemm", "MatMul")]
    weights = [_untransposed(value) for node in products for value in node.inputs[:2] if value is not None]
    names = [str(value.name) for value in weights if value.shape is not None and len(value.shape) == 2]
    return list(dict.fromkeys(name for name in names if name in graph.graph.initializers))


def _untransposed(value: ir.Value) -> ir.Value:
    node = value.producer()
    if node is None or node.op_type != "Transpose" or node.inputs[0] is None:
        return value
    return node.inputs[0]


def _check_weights(graph: ir.Model, source: SourceModel, floating: str) -> None:
    """Types that the precisions have, and numbers."""
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

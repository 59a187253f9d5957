"""Cleaning ONNX graphs: inline functions, remove dead code, fold constants, and turn weights into initialisers."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from trtkp.model.dims import rename_symbols

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["clean_graph", "lift_weights", "name_outputs", "rename_dims"]

# The results of these depend only on the type or the shape of a weight, so they fold although the weight must stay.
_SHAPE_ONLY = frozenset({"Shape", "Size", "CastLike"})
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def clean_graph(model: ir.Model, parameters: Collection[str]) -> None:
    """Inline functions, fold constants and remove dead code, in place.

    Nothing is computed from a parameter, so the weights of the result can be replaced by name, and BatchNormalization
    stays.

    Args:
        model: the graph.
        parameters: names of the initialisers that stay as they are.
    """
    import onnx_ir.passes.common as passes
    from onnxscript import optimizer

    from trtkp.graph.inline import inline_functions

    inline_functions(model)

    def should_fold(node: ir.Node) -> bool | None:
        if node.op_type in _SHAPE_ONLY or not any(v is not None and v.name in parameters for v in node.inputs):
            return None
        return False

    # The optimiser warns about every node that it cannot fold.
    logger = logging.getLogger("onnxscript")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        optimizer.fold_constants(model, should_fold=should_fold)
    finally:
        logger.setLevel(level)
    lift_weights(model.graph)
    _drop_zero_bias(model.graph, parameters)
    passes.RemoveUnusedNodesPass()(model)
    passes.RemoveUnusedFunctionsPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)


def lift_weights(graph: ir.Graph) -> None:
    """Turn constants that convolutions and matrix products read into initialisers.

    A Constant node becomes an initialiser with the name of the node's output. Readers of an Identity of an initialiser
    read the initialiser itself, so a shared weight is a single initialiser.
    """
    for node in list(graph.all_nodes()):
        if node.op_type not in _WEIGHTED:
            continue
        for index, value in enumerate(node.inputs):
            source = value
            seen = 0
            while source is not None and (maker := source.producer()) is not None and seen < 100:
                if maker.op_type != "Identity" or maker.domain:
                    break
                source, seen = maker.inputs[0], seen + 1
            if source is None:
                continue
            maker = source.producer()
            if maker is not None and maker.op_type == "Constant" and maker.graph is graph:
                source = _lift(graph, maker)
            if source is not value and source is not None and source.is_initializer():
                node.replace_input_with(index, source)


def name_outputs(model: ir.Model, names: list[str]) -> None:
    """Name the graph's outputs, in order. An output that is an input too, or is listed twice, gets an Identity."""
    import onnx_ir as ir

    graph = model.graph
    inputs = set(graph.inputs)
    seen: set[ir.Value] = set()
    for index, value in enumerate(graph.outputs):
        if value in inputs or value in seen or value.is_initializer():
            node = ir.Node("", "Identity", [value])
            node.outputs[0].shape, node.outputs[0].type = value.shape, value.type
            graph.append(node)
            graph.outputs[index] = node.outputs[0]
        seen.add(graph.outputs[index])
    others = {value.name: value for node in graph for value in node.outputs if value not in seen}
    for value, name in zip(graph.outputs, names, strict=True):
        if name in others:
            others[name].name = f"{name}_inner"
        value.name = name


def rename_dims(model: ir.Model, names: Mapping[str, str]) -> None:
    """Rename symbolic dimensions everywhere in the graph. Names that are not in ``names`` stay."""
    import onnx_ir as ir

    for value in _values(model.graph):
        if value.shape is None:
            continue
        dims: list[Any] = list(value.shape)
        sizes: list[Any] = [
            ir.SymbolicDim(rename_symbols(dim.value, names)) if isinstance(dim, ir.SymbolicDim) and dim.value else dim
            for dim in dims
        ]
        value.shape = ir.Shape(sizes)


def _values(graph: ir.Graph) -> Iterable[ir.Value]:
    yield from graph.inputs
    for node in graph.all_nodes():
        yield from node.outputs


def _lift(graph: ir.Graph, node: ir.Node) -> ir.Value | None:
    import onnx_ir as ir

    attribute = node.attributes.get("value")
    tensor = attribute.as_tensor() if attribute is not None and attribute.type == ir.AttributeType.TENSOR else None
    output = node.outputs[0]
    if tensor is None or output.name is None or output.is_graph_output() or output.name in graph.initializers:
        return None
    dims: list[Any] = list(tensor.shape)
    value = ir.Value(name=output.name, shape=ir.Shape(dims), type=ir.TensorType(tensor.dtype))
    value.const_value = tensor
    output.name = f"{output.name}_constant"
    output.replace_all_uses_with(value)
    graph.register_initializer(value)
    graph.remove(node, safe=True)
    return value


def _drop_zero_bias(graph: ir.Graph, parameters: Collection[str]) -> None:
    """Remove biases of zeros: PyTorch's exporter adds them to convolutions without a bias."""
    for node in graph.all_nodes():
        if node.op_type not in ("Conv", "ConvTranspose") or len(node.inputs) < 3:
            continue
        bias = node.inputs[2]
        if bias is None or bias.name in parameters or bias.const_value is None:
            continue
        if not np.any(bias.const_value.numpy()):
            node.resize_inputs(2)

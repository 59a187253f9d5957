"""Attribute the times of a profile to the layers that the user knows.

A profile times the nodes of the graph that the library executes, after its own fusion and layout changes. Each such
node is traced back to a node of the original graph by its own name or the names of its outputs; the library appends
suffixes to both. Reorders that the library inserted have no original node. One in front of a layer is attributed to the
layer that reads it, one behind a layer to the layer that wrote its input.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trtkp.comparison.result import LayerTime, LayerTimes
from trtkp.engine.base import EngineProfile, NodeTime

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["BETWEEN", "CONVOLUTION", "MATRIX", "MOVE", "OTHER", "group_of", "layer_times", "node_layers"]

CONVOLUTION, MATRIX, MOVE, OTHER = "convolutions", "matrix products", "reorders and copies", "other operators"
BETWEEN = "between operators"

_PRODUCTS = ("Gemm", "MatMul")
_MOVES = {
    "Cast", "Concat", "DepthToSpace", "DequantizeLinear", "Expand", "Flatten", "Gather", "GatherElements", "GatherND",
    "Identity", "MemcpyFromHost", "MemcpyToHost", "Pad", "QuantizeLinear", "ReorderInput", "ReorderOutput", "Reshape",
    "ScatterElements", "ScatterND", "Shape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose",
    "Unsqueeze",
    # TensorRT's own
    "NoOp", "Reformat", "Shuffle",
}  # fmt: skip
#: Operators that a library fuses into the layer in front of them. The fused node then has the last operator's name.
_EPILOGUES = {
    "Add", "BatchNormalization", "Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "Mul", "PRelu",
    "Relu", "Selu", "Sigmoid", "Softplus", "Sum", "Swish", "Tanh",
}  # fmt: skip
#: Suffixes that ONNX Runtime appends to the names of fused nodes, and of nodes and values in its blocked layout.
_APPENDED = re.compile(r"(_token_\d+|_nchwc)$")


def group_of(op: str) -> str:
    """The kind of an operator, including the library's own ones.

    Example:
        >>> group_of("QLinearConv"), group_of("ReorderInput"), group_of("Relu")
        ('convolutions', 'reorders and copies', 'other operators')
    """
    if "Conv" in op:
        return CONVOLUTION
    if any(product in op for product in _PRODUCTS):
        return MATRIX
    return MOVE if op in _MOVES else OTHER


def node_layers(graph: ir.Graph, known: Mapping[str, str]) -> dict[str, str]:
    """Map names of nodes and of their outputs to the layers they belong to.

    Activations and additions directly behind a layer belong to it, as its epilogue.

    Args:
        graph: the graph that was given to the backend.
        known: parameter name by node name, from a bundle's manifest.
    """
    found: dict[str, str] = {}
    for node in graph:
        layer = _layer(node, known)
        if layer is None and node.op_type in _EPILOGUES:
            before = [found[str(value.name)] for value in node.inputs if value is not None and value.name in found]
            layer = before[-1] if before else None
        if layer is not None:
            found |= dict.fromkeys((str(node.name), *(str(value.name) for value in node.outputs)), layer)
    return found


def layer_times(profile: EngineProfile, owners: Mapping[str, str], batch: int) -> LayerTimes:
    """Sum up a profile by layer and by kind of operator.

    Args:
        profile: the profile of an engine.
        owners: layers by the names of nodes and values (`node_layers`).
        batch: samples per run.
    """
    layers = [_owner(node, owners) for node in profile.nodes]
    _attribute_moves(profile.nodes, layers)
    compute: dict[str, float] = {}
    beside: dict[str, float] = defaultdict(float)
    neighbours: dict[str, Counter[str]] = defaultdict(Counter)
    groups = dict.fromkeys((CONVOLUTION, MATRIX, MOVE, OTHER), 0.0)
    operators: dict[str, float] = defaultdict(float)
    for node, layer in zip(profile.nodes, layers, strict=True):
        group = group_of(node.op)
        groups[group] += node.ms
        operators[node.op] += node.ms
        if layer is None:
            continue
        if group in (CONVOLUTION, MATRIX):
            compute[layer] = compute.get(layer, 0.0) + node.ms
        else:
            beside[layer] += node.ms
            neighbours[layer][node.op] += 1
    order = dict.fromkeys((*compute, *beside))  # order of the computing nodes: a neighbour may run long before them
    # Medians do not add up exactly, so the rest can come out slightly negative.
    groups[BETWEEN] = max(0.0, profile.run_ms - sum(groups.values()))
    return LayerTimes(
        batch=batch,
        layers=tuple(LayerTime(name, compute.get(name, 0.0), beside[name], dict(neighbours[name])) for name in order),
        groups=groups,
        operators=dict(sorted(operators.items(), key=lambda item: -item[1])),
        run_ms=profile.run_ms,
        moves=sum(group_of(node.op) == MOVE for node in profile.nodes),
    )


def read_graph(path: Path) -> ir.Graph:
    """Read the graph of an ONNX file; its weights are not loaded."""
    import onnx_ir as ir

    return ir.load(path).graph


def _layer(node: ir.Node, known: Mapping[str, str]) -> str | None:
    """The parameter a node belongs to. A convolution or product without a stored weight counts under its own name."""
    from trtkp.graph.edit import WEIGHT, input_at, weight_name

    noted = node.metadata_props.get(WEIGHT) or known.get(str(node.name))
    if noted is not None or group_of(node.op_type) not in (CONVOLUTION, MATRIX):
        return noted
    index = 1 if weight_name(node) is not None or node.op_type != "MatMul" else 0
    value = input_at(node, index)
    producer = value.producer() if value is not None else None
    if producer is not None and producer.op_type == "DequantizeLinear":
        value = producer.inputs[0]  # its name is the weight's, followed by the 8-bit type (see calib/qdq.py)
        return re.sub(r"\.(int8|uint8|fp8)$", "", str(value.name)) if value is not None else str(node.name)
    return weight_name(node) or str(node.name)


def _owner(node: NodeTime, owners: Mapping[str, str]) -> str | None:
    candidates = (node.name, *node.outputs)
    return next((owners[key] for name in candidates for key in _origins(name) if key in owners), None)


def _origins(name: str) -> Iterable[str]:
    """The name, and the name without each of its appended suffixes."""
    yield name
    while (shorter := _APPENDED.sub("", name)) != name:
        name = shorter
        yield name


def _attribute_moves(nodes: Sequence[NodeTime], layers: list[str | None]) -> None:
    """Attribute moves without a layer to the layer that reads them, or else to the one that wrote their input.

    ``layers`` is changed in place.
    """
    writer = {value: i for i, node in enumerate(nodes) for value in node.outputs}
    readers: dict[str, list[int]] = defaultdict(list)
    for i, node in enumerate(nodes):
        for value in node.inputs:
            readers[value].append(i)
    for i in reversed(range(len(nodes))):  # backwards, so that a whole chain of moves goes to the layer at its end
        if layers[i] is None and group_of(nodes[i].op) == MOVE:
            behind = (layers[reader] for value in nodes[i].outputs for reader in readers[value])
            before = (layers[writer[value]] for value in nodes[i].inputs if value in writer)
            layers[i] = next(
                (layer for found in _by_side(nodes[i].op, behind, before) for layer in found if layer), None
            )


def _by_side(op: str, behind: Iterable[str | None], before: Iterable[str | None]) -> tuple[Iterable[str | None], ...]:
    """Which side a move belongs to: ``ReorderOutput`` to the layer that wrote its input, others to their reader."""
    return (before, behind) if op == "ReorderOutput" else (behind, before)

"""Time per layer, with its neighbours: what a profile of nodes says of the layers that a user knows.

A node of the running graph belongs to the layer of the original node that it came from, found by its own name or by the
names of its outputs (the library appends to both when it fuses and lays out anew). Reorders that it put in have no
original: one before a layer belongs to the layer that reads it, one behind to the layer that it reads.
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
    # of TensorRT
    "NoOp", "Reformat", "Shuffle",
}  # fmt: skip
#: Operators that a library fuses into the layer before them, which then goes by their name.
_EPILOGUES = {
    "Add", "BatchNormalization", "Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "Mul", "PRelu",
    "Relu", "Selu", "Sigmoid", "Softplus", "Sum", "Swish", "Tanh",
}  # fmt: skip
#: What ONNX Runtime appends to names: of fused nodes, and of values and nodes in its blocked layout.
_APPENDED = re.compile(r"(_token_\d+|_nchwc)$")


def group_of(op: str) -> str:
    """The kind of an operator, of the library's own ones too (``FusedConv``, ``QLinearConv``, ``QGemm``)."""
    if "Conv" in op:
        return CONVOLUTION
    if any(product in op for product in _PRODUCTS):
        return MATRIX
    return MOVE if op in _MOVES else OTHER


def node_layers(graph: ir.Graph, known: Mapping[str, str]) -> dict[str, str]:
    """Layer of every node that belongs to one, by the node's name and by the names of its outputs.

    Activations and additions behind a layer are its epilogue.

    Args:
        graph: as it was handed to the backend.
        known: node name to parameter name, of a bundle's manifest.
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
    """Sum a profile up by layer and by kind of operator.

    Args:
        profile: of the running graph.
        owners: names of nodes and values to layers (`node_layers`).
        batch: samples of a run.
    """
    layers = [_owner(node, owners) for node in profile.nodes]
    _adopt(profile.nodes, layers)
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
    order = dict.fromkeys((*compute, *beside))  # a neighbour may run long before its layer
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
    """The graph of an ONNX file, its weights untouched."""
    import onnx_ir as ir

    return ir.load(path).graph


def _layer(node: ir.Node, known: Mapping[str, str]) -> str | None:
    """The parameter that a node was made for; weighted nodes without a stored weight count under their own name."""
    from trtkp.graph.edit import WEIGHT, input_at, weight_name

    noted = node.metadata_props.get(WEIGHT) or known.get(str(node.name))
    if noted is not None or group_of(node.op_type) not in (CONVOLUTION, MATRIX):
        return noted
    index = 1 if weight_name(node) is not None or node.op_type != "MatMul" else 0
    value = input_at(node, index)
    producer = value.producer() if value is not None else None
    if producer is not None and producer.op_type == "DequantizeLinear":
        value = producer.inputs[0]  # named after the weight and its type
        return re.sub(r"\.(int8|uint8|fp8)$", "", str(value.name)) if value is not None else str(node.name)
    return weight_name(node) or str(node.name)


def _owner(node: NodeTime, owners: Mapping[str, str]) -> str | None:
    candidates = (node.name, *node.outputs)
    return next((owners[key] for name in candidates for key in _origins(name) if key in owners), None)


def _origins(name: str) -> Iterable[str]:
    """The name, and what it was before something was appended."""
    yield name
    while (shorter := _APPENDED.sub("", name)) != name:
        name = shorter
        yield name


def _adopt(nodes: Sequence[NodeTime], layers: list[str | None]) -> None:
    """Give moves that belong to nobody to the layer behind them, or else to the one before, in place."""
    writer = {value: i for i, node in enumerate(nodes) for value in node.outputs}
    readers: dict[str, list[int]] = defaultdict(list)
    for i, node in enumerate(nodes):
        for value in node.inputs:
            readers[value].append(i)
    for i in reversed(range(len(nodes))):  # against the flow: a chain of moves before a layer is all its own
        if layers[i] is None and group_of(nodes[i].op) == MOVE:
            behind = (layers[reader] for value in nodes[i].outputs for reader in readers[value])
            before = (layers[writer[value]] for value in nodes[i].inputs if value in writer)
            layers[i] = next(
                (layer for found in _by_side(nodes[i].op, behind, before) for layer in found if layer), None
            )


def _by_side(op: str, behind: Iterable[str | None], before: Iterable[str | None]) -> tuple[Iterable[str | None], ...]:
    """A reorder of an output undoes what its writer did; any other move prepares what reads it."""
    return (before, behind) if op == "ReorderOutput" else (behind, before)

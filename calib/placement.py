"""Decide where Q/DQ pairs are placed: which tensors are stored in 8 bits, and with which range.

A *site* is a convolution or fully connected layer whose weight is a constant. There are two *variants*, which place
pairs differently and share the same ranges:

``explicit``, for TensorRT's strongly typed networks: a pair on the input and one on the weight of every quantised site.
Where the output of a quantised convolution goes into a residual Add, there is also a pair on the *other* operand:
TensorRT then computes convolution, bias, Add and activation in one INT8 kernel. Outputs get no pair, so that
activations can be fused.

``onnxruntime``, for its CPU kernels (QLinearConv, QGemm, QLinearAdd), which need 8 bits on both sides: the output of a
quantised site is stored in 8 bits too, and so is the sum of two such tensors. After a ReLU the unsigned type is used,
which makes the ReLU redundant. A chain of four 3x3 convolutions of 64 channels ran 1.9 times as fast as fp32 in this
variant on an AVX2 machine, and 0.7 times in the explicit one.

Operators that only move values (Gather, MaxPool, Reshape, the one-hot convolution of the lowering ``taps``) keep the
range of their input. Sums of the parts of one layer (lowering ``rectangles``) are not residual Adds; in the explicit
variant they stay in floating point.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from trtkp.engine.base import QdqVariant
from trtkp.graph.edit import WEIGHT, constant, input_at, only_consumer, weight_name

__all__ = ["Pair", "Placement", "Site", "find_sites", "place", "root"]

#: Operators whose output contains only values of their first input, and zeros (Pad).
_MOVES = frozenset(
    {"Flatten", "Gather", "Identity", "MaxPool", "Pad", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
)
#: Operators whose output is never negative.
_POSITIVE = frozenset({"HardSigmoid", "Relu", "Sigmoid", "Softmax"})
#: Operators whose output is never negative if none of their inputs is.
_KEEPS_SIGN = _MOVES | {"AveragePool", "Concat", "GlobalAveragePool", "GlobalMaxPool", "Resize"}


@dataclass(frozen=True)
class Site:
    """A node to quantise.

    Attributes:
        node: name of the node.
        op: its operator, ``Conv`` or ``Gemm``.
        layer: parameter name of the layer it belongs to. A lowering can split a layer into several nodes.
        axis: axis of its weight that counts filters.
    """

    node: str
    op: str
    layer: str
    axis: int


@dataclass(frozen=True)
class Pair:
    """A Q/DQ pair on a value.

    Attributes:
        value: name of the value to quantise.
        range_of: name of the tensor whose range is used.
        unsigned: whether to use 0..255 instead of -127..127; for values that are never negative.
        readers: ``(node, input)`` of the readers that get the quantised value; None for all readers.
    """

    value: str
    range_of: str
    unsigned: bool = False
    readers: tuple[tuple[str, int], ...] | None = None


@dataclass
class Placement:
    """The sites that get 8-bit weights, and the Q/DQ pairs on activations."""

    sites: list[Site] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)

    @property
    def tensors(self) -> list[str]:
        """Names of the tensors whose ranges are needed."""
        return sorted({pair.range_of for pair in self.pairs})


def find_sites(model: ir.Model) -> list[Site]:
    """Return every node that can be quantised, in graph order.

    These are convolutions with a constant weight (of any dimension, also grouped), and Gemm with a constant weight,
    without scaling and without transposed input. Transposed convolutions, MatMul and computed weights stay as they are.
    """
    sites = []
    for node in model.graph:
        weight = constant(input_at(node, 1))
        if node.domain or weight is None or weight.dtype != np.float32:
            continue
        plain = node.op_type == "Gemm" and node.attributes.get_int("transA", 0) == 0
        plain = plain and all(node.attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta"))
        if node.op_type == "Conv" or plain:
            axis = 0 if node.op_type == "Conv" or node.attributes.get_int("transB", 0) == 1 else 1
            sites.append(Site(str(node.name), node.op_type, weight_name(node) or str(node.name), axis))
    return sites


def place(model: ir.Model, variant: QdqVariant, layers: Collection[str] | None = None) -> Placement:
    """Decide where the pairs are placed when the given layers are quantised.

    Args:
        model: a float32 graph of standard operators, whose nodes have unique names.
        variant: the Q/DQ variant; see the module's description.
        layers: names as in `Site.layer`; None for all layers.
    """
    sites = [site for site in find_sites(model) if layers is None or site.layer in layers]
    nodes = {str(node.name): node for node in model.graph}
    chosen = {site.node: nodes[site.node] for site in sites}
    pairs = _explicit(model, chosen) if variant == "explicit" else _both_sides(model, chosen)
    return Placement(sites, pairs)


def root(value: ir.Value) -> ir.Value:
    """Return the value that this one is a moved copy of, through any number of moves; or the value itself."""
    return _chain(value)[-1]


def _explicit(model: ir.Model, sites: dict[str, ir.Node]) -> list[Pair]:
    readers: dict[ir.Value, list[tuple[str, int]]] = {}
    for name, node in sites.items():
        readers.setdefault(_first(node), []).append((name, 0))
    for add in model.graph:
        if not _is_residual_add(add):
            continue
        # TensorRT fuses the Add into one convolution. Where two meet, that is the later one: the other is done by then.
        producers = [_convolution_for(add, value) for value in add.inputs]
        later = max((node for node in producers if node is not None), key=_position, default=None)
        if later is not None and str(later.name) in sites:
            side = 1 - producers.index(later)
            other = add.inputs[side]
            assert other is not None
            readers.setdefault(other, []).append((str(add.name), side))
    return [_pair(value, tuple(places)) for value, places in readers.items()]


def _convolution_for(add: ir.Node, value: ir.Value | None) -> ir.Node | None:
    """The convolution with a constant weight that writes this value, if the Add is its only reader; else None."""
    producer = value.producer() if value is not None else None
    if value is None or producer is None or producer.op_type != "Conv" or producer.domain:
        return None
    return producer if constant(input_at(producer, 1)) is not None and only_consumer(value) is add else None


def _both_sides(model: ir.Model, sites: dict[str, ir.Node]) -> list[Pair]:
    # In graph order, so that both operands of a sum have been seen when the sum is reached.
    values: dict[ir.Value, None] = {}
    for node in model.graph:
        if str(node.name) in sites:
            values |= dict.fromkeys(_chain(_first(node)))
        elif not _is_sum(node) or not all(value in values for value in node.inputs):
            continue
        output = _behind_relu(node.outputs[0])
        if not output.is_graph_output():
            values[output] = None
    return [_pair(value, None, unsigned=_never_negative(value)) for value in values if not value.is_graph_output()]


def _pair(value: ir.Value, readers: tuple[tuple[str, int], ...] | None, *, unsigned: bool = False) -> Pair:
    return Pair(str(value.name), str(root(value).name), unsigned, readers)


def _first(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None
    return value


def _chain(value: ir.Value) -> list[ir.Value]:
    """The value, the value it was moved from, and so on back to the one that was computed."""
    chain = [value]
    while (producer := chain[-1].producer()) is not None and _only_moves(producer):
        chain.append(_first(producer))
    return chain


def _only_moves(node: ir.Node) -> bool:
    if node.domain or input_at(node, 0) is None or constant(node.inputs[0]) is not None:
        return False
    if node.op_type == "Pad":
        mode, fill = node.attributes.get_string("mode", "constant"), constant(input_at(node, 2))
        return mode != "constant" or input_at(node, 2) is None or (fill is not None and fill.item() == 0)
    if node.op_type == "Conv":
        weight = constant(input_at(node, 1))
        return weight is not None and input_at(node, 2) is None and _is_selection(node, weight)
    return node.op_type in _MOVES


def _is_selection(node: ir.Node, weight: np.ndarray) -> bool:
    """Whether a convolution only selects values: depthwise, and each kernel has at most one 1 and otherwise zeros."""
    kernels = weight.reshape(len(weight), -1)
    depthwise = weight.shape[1] == 1 and node.attributes.get_int("group", 1) > 1
    return depthwise and bool(np.isin(kernels, (0, 1)).all() and (kernels.sum(axis=1) <= 1).all())


def _is_sum(node: ir.Node) -> bool:
    return node.op_type == "Add" and node.domain == "" and all(constant(value) is None for value in node.inputs)


def _is_residual_add(node: ir.Node) -> bool:
    """Whether an Add sums two tensors that are not parts of the same layer."""
    if not _is_sum(node):
        return False
    owners = [_owner(value) for value in node.inputs]
    return owners[0] is None or owners[0] != owners[1]


def _owner(value: ir.Value | None) -> str | None:
    """The layer whose convolution, or sum of convolutions, writes this value; None if there is no single one."""
    producer = value.producer() if value is not None else None
    if producer is None or producer.op_type not in ("Add", "Conv"):
        return None
    if producer.op_type == "Conv":
        return producer.metadata_props.get(WEIGHT) or weight_name(producer)
    left, right = (_owner(operand) for operand in producer.inputs)
    return left if left == right else None


def _behind_relu(value: ir.Value) -> ir.Value:
    follower = only_consumer(value)
    if follower is None or follower.domain:
        return value
    if follower.op_type == "Relu" or (follower.op_type == "Clip" and _never_negative(follower.outputs[0])):
        return follower.outputs[0]
    return value


def _never_negative(value: ir.Value | None) -> bool:
    producer = value.producer() if value is not None else None
    if producer is None or producer.domain:
        return False
    if producer.op_type == "Clip":
        low = constant(input_at(producer, 1))
        return low is not None and low.item() >= 0
    if producer.op_type in _POSITIVE:
        return True
    if producer.op_type == "Concat":
        return all(_never_negative(part) for part in producer.inputs)
    return (producer.op_type in _KEEPS_SIGN or _only_moves(producer)) and _never_negative(producer.inputs[0])


def _position(node: ir.Node) -> int:
    graph = node.graph
    assert graph is not None
    return list(graph).index(node)

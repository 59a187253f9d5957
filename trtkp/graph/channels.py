"""Channel flow: how channels pass through a graph of standard operators, and the single edit that passes build on.

A *channel* is a position on axis 1 of a value. Every node has a role:

- convolutions and fully connected layers *mix* the channels that they read into new ones;
- channelwise operators pass channels on in the same order;
- Concat appends channels, Gather selects some, and flattening turns each channel into a block of columns;
- every other node is *opaque*: the channels that it reads and writes must stay as they are.

`channel_flow` finds the roles. `select_channels` permutes, removes or adds channels and rewrites the weights around
them. The passes `dead` and `channel_order` are both built on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from math import prod
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from trtkp.graph.edit import WEIGHT, add_initializer, constant, finish, input_at, ints, weight_name

__all__ = [
    "BROADCAST",
    "CHANNELWISE",
    "ChannelFlow",
    "Channels",
    "ConstantEditor",
    "Kind",
    "Role",
    "channel_flow",
    "filter_axis",
    "select_channels",
]

Indices: TypeAlias = npt.NDArray[np.int64]

#: Elementwise operators on one activation; their other inputs are constants. Sqrt and Log are left out: a channel that
#: nobody needs may hold values where they are not defined, and zero times NaN is not zero.
CHANNELWISE = frozenset(
    {
        "Abs", "Cast", "Ceil", "Celu", "Clip", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid",
        "HardSwish", "Identity", "LeakyRelu", "Mish", "Neg", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Softplus",
        "Softsign", "Tanh", "ThresholdedRelu",
    }
)  # fmt: skip
#: Elementwise operators on several operands, which may be activations or constants.
BROADCAST = frozenset({"Add", "Div", "Max", "Mean", "Min", "Mul", "PRelu", "Pow", "Sub", "Sum"})
#: A declared shape with more channels is not followed: a file may declare any, and every channel costs memory.
MAX_CHANNELS = 1 << 20
_REDUCE = frozenset({"ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"})
_GLOBAL_POOL = frozenset({"GlobalAveragePool", "GlobalMaxPool"})
_POOL = frozenset({"AveragePool", "MaxPool"})


class Kind(Enum):
    """What a node does with channels."""

    MIX = auto()
    """Conv and ConvTranspose of one group, Gemm, MatMul: every output channel depends on all input channels."""
    GROUPED = auto()
    """Conv of several groups, depthwise convolutions included."""
    SAME = auto()
    """Output channel i depends on channel i of every source."""
    CONCAT = auto()
    GATHER = auto()
    FLATTEN = auto()
    OPAQUE = auto()


@dataclass(frozen=True)
class Channels:
    """The channels of a value.

    Attributes:
        count: number of channels.
        rank: number of dimensions of the value.
        plane: positions of one channel in one sample (H·W); None if unknown.
        block: number of neighbouring columns that make up one channel; above 1 after flattening.
    """

    count: int
    rank: int
    plane: int | None = None
    block: int = 1


@dataclass(frozen=True)
class Role:
    """The role of a node.

    Attributes:
        kind: what it does with channels.
        sources: the activations that it reads channels from.
        parameters: for a ``SAME`` node, ``(input, axis)`` of its constants that have one entry per channel.
    """

    kind: Kind
    sources: tuple[ir.Value, ...] = ()
    parameters: tuple[tuple[int, int], ...] = ()


_OPAQUE = Role(Kind.OPAQUE)


@dataclass
class ChannelFlow:
    """The channel flow of a graph.

    Attributes:
        channels: the channels of every value that has some.
        roles: the role of every node.
        pinned: values whose channels must stay as they are.
    """

    channels: dict[ir.Value, Channels] = field(default_factory=dict)
    roles: dict[ir.Node, Role] = field(default_factory=dict)
    pinned: set[ir.Value] = field(default_factory=set)


def channel_flow(model: ir.Model) -> ChannelFlow:
    """The channel flow of a graph whose nodes are in topological order.

    Pinned are graph inputs and outputs, values that opaque nodes read or write, and values that the body of an If or
    Loop reads.
    """
    flow = ChannelFlow()
    for value in model.graph.inputs:
        _track_pinned(flow, value)
    for node in model.graph:
        role, out = _role(node, flow.channels)
        flow.roles[node] = role
        if out is not None:
            flow.channels[node.outputs[0]] = out
        else:
            flow.pinned.update(value for value in node.inputs if value in flow.channels)
            for value in node.outputs:
                _track_pinned(flow, value)
    for value in flow.channels:
        if value.is_graph_output() or any(use.node.graph is not model.graph for use in value.uses()):
            flow.pinned.add(value)
    return flow


def filter_axis(node: ir.Node) -> int:
    """The axis of a mixing node's weight that counts the filters."""
    if node.op_type in ("Gemm", "MatMul"):
        return 0 if node.attributes.get_int("transB", 0) else 1
    return 1 if node.op_type == "ConvTranspose" else 0


def select_channels(model: ir.Model, flow: ChannelFlow, selection: Mapping[ir.Value, Indices]) -> None:
    """Rewrite weights so that every selected value becomes ``value[:, selection]``.

    A selection may permute channels, leave some out, and name channels beyond the last. Those are new: they hold any
    finite values, and no result depends on them.

    Selections must agree with the roles of the nodes. The selections around a ``SAME`` node are equal. Those of Concat
    and Flatten follow from their sources. Those of a grouped convolution keep whole groups or remove whole groups.
    A constant that several nodes read is copied if they need different versions of it.

    Args:
        model: changed in place.
        flow: the channel flow of the model.
        selection: channels to keep, in their new order, by value. Values that are not in it do not change.
    """
    editor = ConstantEditor(model.graph)
    for node, role in flow.roles.items():
        if role.kind is Kind.OPAQUE:
            continue
        picked = selection.get(node.outputs[0])
        read = selection.get(role.sources[0]) if role.sources else None
        if picked is None and read is None:
            continue
        if role.kind is Kind.MIX:
            editor.mix(node, read, picked, flow.channels[role.sources[0]].block if role.sources else 1)
        elif role.kind is Kind.GROUPED:
            editor.grouped(node, read, picked)
        elif role.kind is Kind.SAME and picked is not None:
            for index, axis in role.parameters:
                editor.take(node, index, {axis: (picked, flow.channels[node.outputs[0]].block)}, fill=False)
        elif role.kind is Kind.GATHER:
            editor.gather(node, flow.channels[role.sources[0]].count, read, picked)
        elif role.kind is Kind.FLATTEN and picked is not None and node.op_type == "Reshape":
            editor.reshape(node, len(picked) * flow.channels[node.outputs[0]].block)
    for value, picked in selection.items():
        if value.shape is not None and len(value.shape) > 1:
            columns = len(picked) * flow.channels[value].block
            value.shape = ir.Shape([*value.shape[:1], columns, *value.shape[2:]])
    finish(model)


def _track_pinned(flow: ChannelFlow, value: ir.Value) -> None:
    if value.shape is None or len(value.shape) < 2:
        return
    count = value.shape[1]
    if isinstance(count, int) and 0 < count <= MAX_CHANNELS:
        flow.channels[value] = Channels(count, len(value.shape), _plane(value))
        flow.pinned.add(value)


def _role(node: ir.Node, known: Mapping[ir.Value, Channels]) -> tuple[Role, Channels | None]:
    """The role of a node, and the channels of its output; None if the node is opaque."""
    if node.domain or len(node.outputs) != 1 or input_at(node, 0) is None:
        return _OPAQUE, None
    x = node.inputs[0]
    assert x is not None
    kind = node.op_type
    if kind in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return _mixing(node, x, known.get(x))
    if kind in BROADCAST:
        return _broadcast(node, known)
    if kind == "Concat":
        return _concat(node, known)
    source = known.get(x)
    # The other inputs (bounds of Clip, scales of Resize, ...) must be constants: their effect must be known.
    if source is None or any(constant(value) is None for value in node.inputs[1:] if value is not None):
        return (_reshaped(node, x, source) if kind == "Reshape" and source is not None else None) or (_OPAQUE, None)
    same = Role(Kind.SAME, (x,))
    if kind == "Dropout" and input_at(node, 2) is not None:  # the third input can switch training mode on
        return _OPAQUE, None
    if kind in CHANNELWISE or (kind in ("QuantizeLinear", "DequantizeLinear") and _per_tensor(node)):
        return same, source
    if kind in ("BatchNormalization", "InstanceNormalization"):
        return _normalisation(node, x, source)
    if kind in _GLOBAL_POOL:
        return same, replace(source, plane=1)
    if kind in _POOL or (kind in ("Pad", "Resize", "Slice") and _spatial_only(node, source.rank)):
        return same, replace(source, plane=_plane(node.outputs[0]))
    if kind in _REDUCE or kind in ("Squeeze", "Unsqueeze"):
        return _dimensions(node, x, source)
    if kind in ("Flatten", "Reshape"):
        return _reshaped(node, x, source) or (_OPAQUE, None)
    if kind == "Gather":
        indices = constant(input_at(node, 1))
        assert indices is not None
        if indices.ndim == 1 and source.block == 1 and node.attributes.get_int("axis", 0) % source.rank == 1:
            return Role(Kind.GATHER, (x,)), replace(source, count=len(indices))
    return _OPAQUE, None


def _mixing(node: ir.Node, x: ir.Value, source: Channels | None) -> tuple[Role, Channels | None]:
    weight, bias = constant(input_at(node, 1)), constant(input_at(node, 2))
    if weight is None or constant(x) is not None or (bias is None and input_at(node, 2) is not None):
        return _OPAQUE, None
    groups, rank = node.attributes.get_int("group", 1), weight.ndim
    if node.op_type in ("Conv", "ConvTranspose"):
        if rank < 3 or (node.op_type == "ConvTranspose" and groups > 1):
            return _OPAQUE, None
        channels = weight.shape[1 - filter_axis(node)] * groups
    else:
        # Gemm is supported as exporters write a fully connected layer: no scaling, no transposed input, one bias row.
        plain = all(node.attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta"))
        plain = plain and node.attributes.get_int("transA", 0) == 0
        flat = source.rank == 2 if source is not None else x.shape is not None and len(x.shape) == 2
        if rank != 2 or not plain or not flat or (bias is not None and prod(bias.shape[:-1]) != 1):
            return _OPAQUE, None
        channels = weight.shape[1 - filter_axis(node)]
    if source is not None and (source.rank != rank or source.count * source.block != channels):
        return _OPAQUE, None
    plane = 1 if rank == 2 else _plane(node.outputs[0])
    role = Role(Kind.MIX if groups == 1 else Kind.GROUPED, (x,) if source is not None else ())
    return role, Channels(weight.shape[filter_axis(node)], rank, plane)


def _broadcast(node: ir.Node, known: Mapping[ir.Value, Channels]) -> tuple[Role, Channels | None]:
    operands = [(index, value) for index, value in enumerate(node.inputs) if value is not None]
    constants = {index: stored for index, value in operands if (stored := constant(value)) is not None}
    sources = tuple(value for index, value in operands if index not in constants)
    found = [known.get(value) for value in sources]
    first = found[0] if found else None
    # All activations must have the same channels; only their height and width may broadcast.
    if first is None or any(c is None or replace(c, plane=None) != replace(first, plane=None) for c in found):
        return _OPAQUE, None
    if node.op_type in ("Div", "Pow") and not _defined_everywhere(node.op_type, constants.get(1)):
        return _OPAQUE, None
    parameters = []
    for index, stored in constants.items():
        axis = stored.ndim - (first.rank - 1)  # of the channels, in the constant; negative if it has no such axis
        if stored.ndim > first.rank or (axis >= 0 and stored.shape[axis] not in (1, first.count * first.block)):
            return _OPAQUE, None
        if axis >= 0 and stored.shape[axis] > 1:
            parameters.append((index, axis))
    planes = {c.plane for c in found if c is not None}
    plane = planes.pop() if len(planes) == 1 else _plane(node.outputs[0])
    # A constant that differs from position to position may enlarge the plane.
    if any(prod(stored.shape[max(0, stored.ndim - first.rank + 2) :]) > 1 for stored in constants.values()):
        plane = _plane(node.outputs[0])
    return Role(Kind.SAME, sources, tuple(parameters)), replace(first, plane=plane)


def _defined_everywhere(op_type: str, second: npt.NDArray[Any] | None) -> bool:
    """Whether an operator is defined for every activation: division by constants, or powers with natural exponents."""
    return second is not None and (op_type == "Div" or bool(((second >= 0) & (second == np.round(second))).all()))


def _concat(node: ir.Node, known: Mapping[ir.Value, Channels]) -> tuple[Role, Channels | None]:
    found = [known[value] for value in node.inputs if value is not None and value in known]
    if len(found) != len(node.inputs) or len({(c.rank, c.block) for c in found}) > 1:
        return _OPAQUE, None
    if node.attributes.get_int("axis", 0) % found[0].rank != 1:
        return _OPAQUE, None
    sources = tuple(value for value in node.inputs if value is not None)
    return Role(Kind.CONCAT, sources), replace(found[0], count=sum(c.count for c in found))


def _normalisation(node: ir.Node, x: ir.Value, source: Channels) -> tuple[Role, Channels | None]:
    stored = [constant(value) for value in node.inputs[1:]]
    fits = all(array is not None and array.shape == (source.count,) for array in stored)
    if not fits or source.block > 1 or node.attributes.get_int("training_mode", 0) == 1:
        return _OPAQUE, None
    return Role(Kind.SAME, (x,), tuple((index, 0) for index in range(1, 1 + len(stored)))), source


def _dimensions(node: ir.Node, x: ir.Value, source: Channels) -> tuple[Role, Channels | None]:
    """Reduce, Squeeze and Unsqueeze along dimensions behind the channels."""
    axes = constant(input_at(node, 1))
    listed = [int(axis) for axis in axes.ravel()] if axes is not None else list(ints(node, "axes", ()))
    rank = source.rank + (len(listed) if node.op_type == "Unsqueeze" else 0)
    spatial = {axis % rank for axis in listed}
    if not spatial or min(spatial) < 2 or source.block > 1:
        return _OPAQUE, None
    plane = source.plane
    if node.op_type == "Squeeze":
        rank -= len(spatial)
    elif node.op_type in _REDUCE:
        plane = 1 if len(spatial) == rank - 2 else _plane(node.outputs[0])
        rank -= len(spatial) if node.attributes.get_int("keepdims", 1) == 0 else 0
    return Role(Kind.SAME, (x,)), replace(source, rank=rank, plane=plane)


def _reshaped(node: ir.Node, x: ir.Value, source: Channels) -> tuple[Role, Channels] | None:
    """Flattening to ``[N, C·H·W]``. It is recognised by the number of columns: the rows can then only be the batch."""
    y = node.outputs[0]
    plane = source.plane if source.rank > 2 else 1
    if plane is None:
        return None
    columns = source.count * source.block * plane
    if node.op_type == "Flatten":
        if node.attributes.get_int("axis", 1) % source.rank != 1:
            return None
    else:
        shape = constant(input_at(node, 1))
        target = list(y.shape) if y.shape is not None else list(shape) if shape is not None else []
        if len(target) != 2 or target[1] != columns:
            return None
    return Role(Kind.FLATTEN, (x,)), Channels(source.count, 2, 1, source.block * plane)


def _per_tensor(node: ir.Node) -> bool:
    return all(stored.size == 1 for value in node.inputs[1:] if (stored := constant(value)) is not None)


def _spatial_only(node: ir.Node, rank: int) -> bool:
    """Whether a Pad, Resize or Slice leaves batch and channels alone."""
    if node.op_type == "Resize":
        scales = constant(input_at(node, 2))
        whole = scales is not None and len(scales) == rank and bool((scales[:2] == 1).all())
        return whole and input_at(node, 3) is None and "axes" not in node.attributes
    axes = constant(input_at(node, 3))
    if axes is not None:
        return all(axis % rank >= 2 for axis in axes.ravel().tolist())
    pads = constant(input_at(node, 1)) if node.op_type == "Pad" else None
    return pads is not None and len(pads) == 2 * rank and not pads[[0, 1, rank, rank + 1]].any()


def _plane(value: ir.Value) -> int | None:
    if value.shape is None or not all(isinstance(dim, int) for dim in value.shape[2:]):
        return None
    return prod(dim for dim in value.shape[2:] if isinstance(dim, int))


class ConstantEditor:
    """Exchanges constants of nodes. A constant that other nodes read too is copied, once per selection."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.copies: dict[tuple[Any, ...], ir.Value] = {}

    def mix(self, node: ir.Node, read: Indices | None, picked: Indices | None, block: int) -> None:
        """Select ``read`` among the channels that a ``MIX`` node reads, and ``picked`` among its filters."""
        axis = filter_axis(node)
        axes = {axis: (picked, 1), 1 - axis: (read, block)}
        self.take(node, 1, axes)
        self.bias(node, picked)

    def bias(self, node: ir.Node, picked: Indices | None) -> None:
        """Select ``picked`` in the bias of a mixing node."""
        stored = constant(input_at(node, 2))
        if stored is not None and picked is not None and (stored.size > 1 or node.op_type != "Gemm"):
            self.take(node, 2, {stored.ndim - 1: (picked, 1)})

    def grouped(self, node: ir.Node, read: Indices | None, picked: Indices | None) -> None:
        """Select whole groups of a grouped convolution."""
        weight, groups = constant(node.inputs[1]), node.attributes.get_int("group", 1)
        assert weight is not None
        filters, channels = weight.shape[0] // groups, weight.shape[1]
        picked = np.arange(weight.shape[0]) if picked is None else picked
        read = np.arange(channels * groups) if read is None else read
        kept = len(picked) // filters
        # Channels of each remaining group, relative to it. Groups that are new take any channels: their weights are 0.
        inside = (read % channels).reshape(kept, channels)
        taken = _take(weight, picked, 0, 1, fill=True)
        index = inside.repeat(filters, axis=0).reshape(len(picked), channels, *(1,) * (weight.ndim - 2))
        self.put(node, 1, np.take_along_axis(taken, index, axis=1), (picked.tobytes(), read.tobytes()))
        self.bias(node, picked)
        node.attributes["group"] = ir.AttrInt64("group", kept)

    def gather(self, node: ir.Node, count: int, read: Indices | None, picked: Indices | None) -> None:
        """Rewrite the indices of a Gather of ``count`` channels: to give ``picked``, out of an input with ``read``."""
        stored = constant(node.inputs[1])
        assert stored is not None
        indices = np.where(stored < 0, stored + count, stored)
        wanted = indices if picked is None else indices[np.where(picked < len(indices), picked, 0)]
        if read is not None:
            place = np.zeros(1 + max(read.max(), indices.max()), np.int64)
            place[read[::-1]] = np.arange(len(read))[::-1]  # reversed, so that of equal channels the first counts
            wanted = place[wanted]
        self.put(node, 1, wanted.astype(stored.dtype), (wanted.tobytes(),))

    def reshape(self, node: ir.Node, columns: int) -> None:
        """Let a Reshape give ``[N, columns]``."""
        self.put(node, 1, np.array([-1, columns], np.int64), (columns,))

    def take(
        self, node: ir.Node, index: int, axes: Mapping[int, tuple[Indices | None, int]], *, fill: bool = True
    ) -> None:
        """Select along axes of a constant input.

        Args:
            node: the node.
            index: which of its inputs.
            axes: axis to the selection along it (None for all) and the number of entries per channel.
            fill: new channels are zero. False copies the first channel, which keeps a divisor or a variance valid.
        """
        array = constant(node.inputs[index])
        assert array is not None
        for axis, (selection, block) in axes.items():
            if selection is not None:
                array = _take(array, selection, axis, block, fill=fill)
        key = tuple((axis, block, None if s is None else s.tobytes()) for axis, (s, block) in sorted(axes.items()))
        self.put(node, index, array, key)

    def put(self, node: ir.Node, index: int, array: npt.NDArray[Any], key: tuple[Any, ...]) -> None:
        """Give a node another constant. Nodes with the same old constant and the same key share the new one."""
        value = node.inputs[index]
        assert value is not None
        if index == 1 and node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            node.metadata_props.setdefault(WEIGHT, weight_name(node) or str(node.name))
        if (value, *key) not in self.copies:
            # A constant that nothing else uses is changed in place, and keeps its parameter name.
            own = len(value.uses()) == 1 and value.is_initializer() and not value.is_graph_output()
            if own and not value.is_graph_input():
                value.const_value = ir.tensor(np.ascontiguousarray(array), name=value.name)
                value.shape = ir.Shape(array.shape)
                return
            self.copies[value, *key] = add_initializer(self.graph, str(value.name), array)
        node.replace_input_with(index, self.copies[value, *key])


def _take(array: npt.NDArray[Any], selection: Indices, axis: int, block: int, *, fill: bool) -> npt.NDArray[Any]:
    real = selection < array.shape[axis] // block
    places = np.where(real, selection, 0)[:, None] * block + np.arange(block)
    taken: npt.NDArray[Any] = np.take(array, places.ravel(), axis)
    if fill and not real.all():
        np.moveaxis(taken, axis, 0)[np.repeat(~real, block)] = 0
    return taken

"""The forms of standard operators that a packed convolution can take, all exact.

`LOWERINGS` is the one table that says what each form is, when it applies and what work it does; `trtkp.plan.cost` turns
work into a predicted time where nothing can be timed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from trtkp.graph.edit import WEIGHT, add_initializer, constant, ints, weight_name
from trtkp.graph.ops import OpName
from trtkp.graph.packing import PackedConv, unpack
from trtkp.graph.rewrite import read_packed
from trtkp.plan.cost import Work
from trtkp.plan.cover import Rectangle, bounding_box, cover

__all__ = ["LOWERINGS", "Form", "Lowering", "lower"]

#: More filter groups than this are never worth a convolution each.
MAX_GROUPS = 8
#: A gather that writes more than this many times the input's channels costs more memory than it saves.
MAX_GATHER = 4


@dataclass
class Form:
    """A packed node taken apart, and the operators that are to replace it."""

    name: str
    op: OpName
    packed: PackedConv
    x: ir.Value
    bias: npt.NDArray[Any]
    residual: ir.Value | None
    alpha: float
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    output: str
    graph: ir.Graph
    nodes: list[ir.Node] = field(default_factory=list)

    @classmethod
    def of(cls, node: ir.Node, graph: ir.Graph) -> Form:
        """The parts of a node of domain ``trtkp``; new initialisers go to ``graph``."""
        op, packed = read_packed(node)
        bias = constant(node.inputs[5])
        x = node.inputs[0]
        assert bias is not None
        assert x is not None
        return cls(
            name=weight_name(node) or str(node.name),
            op=op,
            packed=packed,
            x=x,
            bias=bias,
            residual=node.inputs[6] if op.residual else None,
            alpha=node.attributes.get_float("alpha", 0.01),
            strides=ints(node, "strides", (1, 1)),
            pads=ints(node, "pads", (0, 0, 0, 0)),
            dilations=ints(node, "dilations", (1, 1)),
            output=str(node.outputs[0].name),
            graph=graph,
        )

    def emit(self, op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        """Append a standard operator with one output."""
        # named after the output: two nodes may share a weight, but never that
        name = f"{self.output}/{op_type}_{len(self.nodes)}"
        node = ir.node(op_type, list(inputs), attributes, name=name, metadata_props={WEIGHT: self.name})
        node.outputs[0].name = f"{node.name}_output"
        node.outputs[0].dtype = ir.DataType.from_numpy(self.packed.weight.dtype)  # every form computes on activations
        self.nodes.append(node)
        return node.outputs[0]

    def store(self, suffix: str, array: npt.NDArray[Any]) -> ir.Value:
        """An initialiser of this layer."""
        return add_initializer(self.graph, f"{self.name}.{suffix}", array)

    def gather(self, x: ir.Value, channels: npt.NDArray[np.int64]) -> ir.Value:
        """Channels of x in the given order."""
        return self.emit("Gather", x, self.store("channels", channels), axis=1)

    def conv(
        self,
        x: ir.Value,
        weight: npt.NDArray[Any],
        bias: npt.NDArray[Any] | None,
        rectangle: Rectangle | None = None,
        groups: int = 1,
    ) -> ir.Value:
        """A convolution with part of the kernel: the rectangle sets where the weight's taps lie."""
        pads = list(self.pads)
        if rectangle is not None:
            _, _, rows, columns = self.packed.weight_shape
            tall, wide = self.dilations
            pads[0] -= rectangle.top * tall
            pads[1] -= rectangle.left * wide
            pads[2] -= (rows - 1 - rectangle.bottom) * tall
            pads[3] -= (columns - 1 - rectangle.right) * wide
            x, pads = self._without_negative(x, pads)
        inputs = [x, self.store("weight", weight)] + ([self.store("bias", bias)] if bias is not None else [])
        return self.emit(
            "Conv", *inputs, strides=self.strides, pads=pads, dilations=self.dilations, group=groups,
            kernel_shape=weight.shape[2:],
        )  # fmt: skip

    def pointwise(self, x: ir.Value, weight: npt.NDArray[Any], bias: npt.NDArray[Any]) -> ir.Value:
        """A 1x1 convolution of stride 1."""
        return self.emit("Conv", x, self.store("weight", weight), self.store("bias", bias), kernel_shape=[1, 1])

    def _without_negative(self, x: ir.Value, pads: list[int]) -> tuple[ir.Value, list[int]]:
        """Cut off the rows and columns that negative padding stands for; the padding that is left for the Conv."""
        top, left, bottom, right = (max(0, -pad) for pad in pads)
        rest = [max(0, pad) for pad in pads]
        if not any((top, left, bottom, right)):
            return x, rest
        size = list(self.x.shape[2:]) if self.x.shape is not None else [None, None]
        large = all(isinstance(s, int) and s > cut for s, cut in zip(size, (top + bottom, left + right), strict=True))
        if not large and any(rest):  # the cut may reach beyond the input, into the padding of the other side
            begins, ends = rest[:2], rest[2:]
            x = self.emit("Pad", x, self.store("pads", np.array([0, 0, *begins, 0, 0, *ends], np.int64)))
            rest = [0, 0, 0, 0]
        limit = np.iinfo(np.int64).max
        x = self.emit(
            "Slice",
            x,
            self.store("starts", np.array([top, left], np.int64)),
            self.store("ends", np.array([-bottom if bottom else limit, -right if right else limit], np.int64)),
            self.store("axes", np.array([2, 3], np.int64)),
        )
        return x, rest

    def epilogue(self, value: ir.Value) -> ir.Value:
        """Residual Add and activation."""
        if self.residual is not None:
            value = self.emit("Add", value, self.residual)
        dtype = self.packed.weight.dtype
        match self.op.activation:
            case "Relu" | "HardSwish":
                return self.emit(self.op.activation, value)
            case "Relu6":
                low, high = self.store("low", np.array(0, dtype)), self.store("high", np.array(6, dtype))
                return self.emit("Clip", value, low, high)
            case "Silu":
                return self.emit("Mul", value, self.emit("Sigmoid", value))
            case "LeakyRelu":
                return self.emit("LeakyRelu", value, alpha=self.alpha)
        return value


def lower(node: ir.Node, graph: ir.Graph, lowering: Lowering) -> tuple[list[ir.Node], ir.Value]:
    """The operators that replace a packed node, and their output."""
    form = Form.of(node, graph)
    output = form.epilogue(lowering.build(form))
    return form.nodes, output


def _stripe_groups(packed: PackedConv) -> list[tuple[npt.NDArray[np.int32], tuple[int, ...], npt.NDArray[Any]]]:
    """Per filter group: its filters, its taps, and its weight [filters, taps, C]; padding left out."""
    filters, channels, rows, columns = packed.weight_shape
    groups = []
    for g, taps in enumerate(packed.index):
        own = (packed.row_group == g) & (packed.filters < filters)
        listed = taps < rows * columns
        weight = packed.weight[own].reshape(int(own.sum()), len(taps), channels)
        groups.append((packed.filters[own], tuple(int(t) for t in taps[listed]), weight[:, listed]))
    return groups


def _stripes_apply(packed: PackedConv) -> str | None:
    if packed.base != "StripeConv" or packed.groups != 1:
        return "lists are not stripes" if packed.groups == 1 else "grouped convolution"
    groups = _stripe_groups(packed)
    if len(groups) > MAX_GROUPS:
        return f"{len(groups)} filter groups, worth it up to {MAX_GROUPS}"
    if any(not taps for _, taps, _ in groups):
        return "a filter group keeps nothing"
    return None


def _boxes(packed: PackedConv, taps: tuple[int, ...]) -> tuple[Rectangle, ...]:
    return (bounding_box(taps, packed.weight_shape[3]),)


def _covers(packed: PackedConv, taps: tuple[int, ...]) -> tuple[Rectangle, ...]:
    return cover(taps, packed.weight_shape[3])


def _build_stripes(form: Form, rectangles_of: Callable[..., tuple[Rectangle, ...]]) -> ir.Value:
    packed, columns = form.packed, form.packed.weight_shape[3]
    parts, order = [], []
    for filters, taps, weight in _stripe_groups(packed):
        left = set(taps)
        total: ir.Value | None = None
        for rectangle in rectangles_of(packed, taps):
            inside = rectangle.taps(columns)
            kernel = np.zeros((*weight.shape[::2], len(inside)), weight.dtype)  # [filters, C, taps]
            for position, tap in enumerate(inside):
                if tap in left:  # a tap that two rectangles hold counts once
                    kernel[:, :, position] = weight[:, taps.index(tap)]
                    left.discard(tap)
            kernel = kernel.reshape(*kernel.shape[:2], *rectangle.shape)
            part = form.conv(form.x, kernel, form.bias[filters] if total is None else None, rectangle)
            total = part if total is None else form.emit("Add", total, part)
        assert total is not None
        parts.append(total)
        order.append(filters)
    joined = parts[0] if len(parts) == 1 else form.emit("Concat", *parts, axis=1)
    return _in_order(form, joined, np.concatenate(order))


def _in_order(form: Form, value: ir.Value, filters: npt.NDArray[np.int32]) -> ir.Value:
    """Undo the filter order of the groups, and drop padding rows."""
    count = form.packed.weight_shape[0]
    if np.array_equal(filters, np.arange(count)):
        return value
    position = np.zeros(count + 1, np.int64)
    position[filters] = np.arange(len(filters))
    return form.gather(value, position[:count])


def _stripes_work(packed: PackedConv, rectangles_of: Callable[..., tuple[Rectangle, ...]]) -> Work:
    filters, _, rows, columns = packed.weight_shape
    groups = [(len(members) / filters, rectangles_of(packed, taps)) for members, taps, _ in _stripe_groups(packed)]
    convolutions = sum(len(parts) for _, parts in groups)
    additions = sum(share * (len(parts) - 1) for share, parts in groups)
    joins = 1 if len(groups) > 1 else 0
    return Work(
        macs=sum(share * part.area for share, parts in groups for part in parts) / (rows * columns),
        reads=convolutions,
        writes=1 + additions + 2 * joins,  # a sum is read back by the next convolution's epilogue
        kernels=convolutions + joins,
    )


def _one_list(packed: PackedConv) -> str | None:
    if packed.groups != 1:
        return "grouped convolution"
    if len(packed.index) != 1:
        return f"{len(packed.index)} lists, not one for the layer"
    if packed.weight_shape[2:] == (1, 1):
        return "1x1 kernel"
    if not len(_listed(packed)[0]):
        return "the layer keeps nothing"
    return None


def _listed(packed: PackedConv) -> tuple[npt.NDArray[np.int64], list[npt.NDArray[np.int64]]]:
    """Channels of the only list and, for each, the packed columns of its taps."""
    _, channels, rows, columns = packed.weight_shape
    tap, channel = (values[0] for values in packed.columns())
    real = np.flatnonzero((tap < rows * columns) & (channel < channels))
    order = real[np.argsort(channel[real], kind="stable")]
    listed, begins = np.unique(channel[order], return_index=True)
    return listed, np.split(order, begins[1:])


def _build_taps(form: Form) -> ir.Value:
    """im2col of the listed (channel, tap) pairs as a depthwise convolution with one-hot kernels, then a 1x1 one."""
    packed = form.packed
    filters, channels, rows, columns = packed.weight_shape
    listed, positions = _listed(packed)
    tap = packed.columns()[0][0]
    width = max(len(p) for p in positions)
    select = np.zeros((len(listed), width, rows * columns), packed.weight.dtype)
    weight = np.zeros((filters + 1, len(listed), width), packed.weight.dtype)
    for c, position in enumerate(positions):
        select[c, np.arange(len(position)), tap[position]] = 1
        weight[packed.filters, c, : len(position)] = packed.weight[:, position]
    x = form.x if len(listed) == channels else form.gather(form.x, listed)
    columns_of_x = form.conv(x, select.reshape(-1, 1, rows, columns), None, groups=len(listed))
    return form.pointwise(columns_of_x, weight[:filters].reshape(filters, -1, 1, 1), form.bias)


def _taps_work(packed: PackedConv) -> Work:
    listed, positions = _listed(packed)
    channels, taps = packed.weight_shape[1], packed.weight_shape[2] * packed.weight_shape[3]
    columns = len(listed) * max(len(position) for position in positions) / channels
    return Work(macs=(columns + columns / packed.weight_shape[0]) / taps, reads=1 + 2 * columns, kernels=2)


def _gather_applies(packed: PackedConv) -> str | None:
    if packed.base != "KernelIndexConv" or packed.groups != 1:
        return "lists are not whole kernels" if packed.groups == 1 else "grouped convolution"
    rows = np.bincount(packed.row_group)
    if len(set(rows.tolist())) != 1:
        return "filter groups of different sizes"
    if packed.index.size > MAX_GATHER * packed.weight_shape[1]:
        return f"its lists name {packed.index.size} channels, worth it up to {MAX_GATHER} times the input's"
    return None


def _build_gather(form: Form) -> ir.Value:
    packed = form.packed
    _filters, channels, rows, columns = packed.weight_shape
    lists = packed.index
    weight = packed.weight.reshape(-1, rows * columns, lists.shape[1]).transpose(0, 2, 1)
    bias = np.append(form.bias, form.bias.dtype.type(0))[packed.filters]
    sources = np.where(lists < channels, lists, 0).ravel().astype(np.int64)
    x = form.x if np.array_equal(sources, np.arange(channels)) else form.gather(form.x, sources)
    kernel = np.ascontiguousarray(weight).reshape(-1, lists.shape[1], rows, columns)
    return _in_order(form, form.conv(x, kernel, bias, groups=len(lists)), packed.filters)


def _gather_work(packed: PackedConv) -> Work:
    groups, length = packed.index.shape
    rows = len(packed.row_group) // groups
    # tensor cores take channels in eights; grouped convolutions below that crawl
    ragged = groups > 1 and (length % 8 or rows % 8)
    copied = groups * length / packed.weight_shape[1]
    return Work(macs=length / packed.weight_shape[1], reads=3 * copied, kernels=2, efficiency=0.25 if ragged else 1.0)


def _build_dense(form: Form) -> ir.Value:
    return form.conv(form.x, unpack(form.packed), form.bias, groups=form.packed.groups)


@dataclass(frozen=True)
class Lowering:
    """One form: ``applies`` gives the reason why not, ``work`` what it does compared with dense."""

    name: str
    summary: str
    applies: Callable[[PackedConv], str | None]
    build: Callable[[Form], ir.Value]
    work: Callable[[PackedConv], Work]


LOWERINGS: dict[str, Lowering] = {
    lowering.name: lowering
    for lowering in (
        Lowering(
            "dense", "one Conv with zeros in its weight", lambda packed: None, _build_dense, lambda packed: Work(1.0)
        ),
        Lowering(
            "box", "stripes: one Conv per filter group, of the taps' bounding box", _stripes_apply,
            lambda form: _build_stripes(form, _boxes), lambda packed: _stripes_work(packed, _boxes),
        ),
        Lowering(
            "rectangles", "stripes: a sum of small Convs that cover the taps", _stripes_apply,
            lambda form: _build_stripes(form, _covers), lambda packed: _stripes_work(packed, _covers),
        ),
        Lowering(
            "taps", "one list: one-hot depthwise Conv as im2col, then a 1x1 Conv", _one_list, _build_taps, _taps_work
        ),
        Lowering(
            "gather", "whole kernels: Gather of the listed channels, then a grouped Conv", _gather_applies,
            _build_gather, _gather_work,
        ),
    )
}  # fmt: skip

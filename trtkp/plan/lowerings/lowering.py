"""What a lowering is, and the context in which one builds the operators that replace a packed convolution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from trtkp.graph.edit import WEIGHT, add_initializer, constant, ints, weight_name
from trtkp.graph.ops import OpName
from trtkp.graph.packing import PackedConv
from trtkp.graph.passes.pack import read_packed
from trtkp.plan.lowerings.cover import Rectangle
from trtkp.plan.lowerings.work import Work

__all__ = ["Built", "Lowering", "LoweringContext", "lower"]

#: What a lowering builds: the convolution's output, and the filter in each of its channels (F marks a padding channel).
#: None instead of the filters means that they are in their original order.
Built = tuple[ir.Value, npt.NDArray[Any] | None]


@dataclass
class LoweringContext:
    """A packed node taken apart, and the operators that replace it, in the order in which they are emitted."""

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
    def of(cls, node: ir.Node, graph: ir.Graph) -> LoweringContext:
        """The context for a node of domain ``trtkp``. New initialisers are added to ``graph`` at once."""
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
        # Named after the node's output: two nodes may share a weight, but never an output.
        name = f"{self.output}/{op_type}_{len(self.nodes)}"
        node = ir.node(op_type, list(inputs), attributes, name=name, metadata_props={WEIGHT: self.name})
        node.outputs[0].name = f"{node.name}_output"
        node.outputs[0].dtype = ir.DataType.from_numpy(self.packed.weight.dtype)  # lowerings keep one type
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
        """A convolution with the layer's strides and dilations, and a part of its kernel.

        Args:
            x: the input.
            weight: [filters, channels per group, rows, columns].
            bias: [filters], or None.
            rectangle: the place of the weight's taps in the layer's kernel; None if the weight has all of them. The
                pads move accordingly.
            groups: ONNX groups.
        """
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
        """Crop the input where a pad is negative, as ONNX's Conv takes none; returns it with the pads that remain."""
        top, left, bottom, right = (max(0, -pad) for pad in pads)
        rest = [max(0, pad) for pad in pads]
        if not any((top, left, bottom, right)):
            return x, rest
        size = list(self.x.shape[2:]) if self.x.shape is not None else [None, None]
        large = all(isinstance(s, int) and s > cut for s, cut in zip(size, (top + bottom, left + right), strict=True))
        # On a tiny or dynamic input the crop may reach beyond it, into the padding of the other side: pad first.
        if not large and any(rest):
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

    def in_order(self, value: ir.Value, filters: npt.NDArray[Any] | None) -> ir.Value:
        """The value with its channels in the original order of the filters, without padding channels."""
        count = self.packed.weight_shape[0]
        if filters is None or np.array_equal(filters, np.arange(count)):
            return value
        position = np.zeros(count + 1, np.int64)
        position[filters] = np.arange(len(filters))
        return self.gather(value, position[:count])

    def activation(self, value: ir.Value) -> ir.Value:
        """The value after the epilogue's activation, as standard operators."""
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


@dataclass(frozen=True)
class Lowering:
    """One lowering.

    Attributes:
        name: as in ``--lowering NAME`` and in the manifest.
        summary: one line for the user.
        applies: None if the lowering can compute a packed convolution, else the reason why not.
        build: emits the convolutions; `lower` adds the epilogue and restores the order of the filters.
        work: what the lowering does, compared with the dense layer.
    """

    name: str
    summary: str
    applies: Callable[[PackedConv], str | None]
    build: Callable[[LoweringContext], Built]
    work: Callable[[PackedConv], Work]


def lower(node: ir.Node, graph: ir.Graph, lowering: Lowering) -> tuple[list[ir.Node], ir.Value]:
    """The operators that replace a packed node, and their output.

    Args:
        node: a node of domain ``trtkp`` with packed weights.
        graph: its graph, which gets the new initialisers. The nodes are not inserted yet.
        lowering: which one to build.
    """
    context = LoweringContext.of(node, graph)
    value, filters = lowering.build(context)
    # Without a residual the activation comes right after the convolution, where ONNX Runtime and TensorRT fuse it. With
    # one, the channels must be in order before the Add.
    if context.residual is None:
        return context.nodes, context.in_order(context.activation(value), filters)
    return context.nodes, context.activation(context.emit("Add", context.in_order(value, filters), context.residual))

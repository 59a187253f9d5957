"""Random nets of standard operators as a planner leaves them, with Gathers of channels and dead filters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from hypothesis import strategies as st

from tests.conftest import Array, GraphBuilder


@dataclass
class _Net:
    """A net under construction; every value of rank 4 with its channels and height (= width)."""

    graph: GraphBuilder
    rng: np.random.Generator
    values: list[tuple[ir.Value, int, int]]
    numbers: int = 0

    def pick(self, *, like: tuple[int, int] | None = None) -> tuple[ir.Value, int, int]:
        fitting = [entry for entry in self.values[-6:] if like is None or entry[1:] == like]
        return fitting[self.rng.integers(len(fitting))]

    def store(self, array: Array) -> ir.Value:
        self.numbers += 1
        array = np.asarray(array)
        return self.graph.constant(f"c{self.numbers}", array.astype(np.float32) if array.dtype.kind == "f" else array)

    def weight(self, *shape: int) -> Array:
        """Some filters and some channels are zero."""
        weight = self.rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
        weight[self.rng.random(shape[0]) < self.rng.choice([0, 0.3, 0.6, 1], p=[0.4, 0.3, 0.2, 0.1])] = 0
        weight[:, self.rng.random(shape[1]) < self.rng.choice([0, 0.3, 0.6])] = 0
        return weight

    def bias(self, count: int) -> list[ir.Value]:
        return [self.store(self.rng.normal(size=count))] if self.rng.random() < 0.7 else []

    def add(self, value: ir.Value, channels: int, size: int) -> None:
        self.values.append((value, channels, size))

    def conv(self, x: ir.Value, channels: int, size: int, filters: int, groups: int = 1) -> tuple[ir.Value, int]:
        kernel, pad = (3, int(self.rng.integers(2))) if size > 3 else (1, 0)
        stride = 2 if size > 6 and self.rng.random() < 0.2 else 1
        weight = self.store(self.weight(filters, channels // groups, kernel, kernel))
        y = self.graph.op("Conv", x, weight, *self.bias(filters), pads=[pad] * 4, strides=[stride] * 2, group=groups)
        return y, (size + 2 * pad - kernel) // stride + 1


def _conv(net: _Net) -> None:
    x, channels, size = net.pick()
    filters = int(net.rng.integers(1, 10))
    y, out = net.conv(x, channels, size, filters)
    net.add(y, filters, out)


def _gather_conv(net: _Net) -> None:
    """What the lowering ``gather`` writes: lists with or without repetition, filters in any order, rows of padding."""
    x, channels, size = net.pick()
    groups, length, rows = (int(n) for n in net.rng.integers(1, 5, size=3))
    if net.rng.random() < 0.5 and channels % groups == 0:
        lists = net.rng.permutation(channels)
    else:
        lists = net.rng.integers(0, channels, size=groups * length)
    y = net.graph.op("Gather", x, net.store(lists), axis=1)
    y, out = net.conv(y, len(lists), size, groups * rows, groups)
    order = net.rng.permutation(groups * rows)
    order = order[: len(order) - int(net.rng.integers(0, 2))] if len(order) > 1 else order
    net.add(net.graph.op("Gather", y, net.store(order), axis=1), len(order), out)


def _reorder(net: _Net) -> None:
    x, channels, size = net.pick()
    net.add(net.graph.op("Gather", x, net.store(net.rng.permutation(channels)), axis=1), channels, size)


def _residual(net: _Net) -> None:
    """A block whose last convolution takes the sum; its filters may be out of order."""
    x, channels, size = net.pick()
    hidden = int(net.rng.integers(1, 8))
    y = net.graph.op("Conv", x, net.store(net.weight(hidden, channels, 1, 1)), *net.bias(hidden))
    y = net.graph.op("Relu", y)
    pad = int(size > 1)
    y = net.graph.op(
        "Conv",
        y,
        net.store(net.weight(channels, hidden, 1 + 2 * pad, 1 + 2 * pad)),
        *net.bias(channels),
        pads=[pad] * 4,
    )
    if net.rng.random() < 0.6:
        y = net.graph.op("Gather", y, net.store(net.rng.permutation(channels)), axis=1)
    net.add(net.graph.op("Relu", net.graph.op("Add", *((x, y) if net.rng.random() < 0.5 else (y, x)))), channels, size)


def _join(net: _Net) -> None:
    x, channels, size = net.pick()
    other, _, _ = net.pick(like=(channels, size))
    net.add(net.graph.op(str(net.rng.choice(["Add", "Mul", "Max", "Sub"])), x, other), channels, size)


def _concat(net: _Net) -> None:
    x, channels, size = net.pick()
    others = [entry for entry in net.values if entry[2] == size]
    other, more, _ = others[net.rng.integers(len(others))]
    if channels + more <= 24:
        net.add(net.graph.op("Concat", x, other, axis=1), channels + more, size)


def _grouped(net: _Net) -> None:
    x, channels, size = net.pick()
    groups = int(net.rng.choice([g for g in range(1, channels + 1) if channels % g == 0]))
    filters = groups * int(net.rng.integers(1, 3))
    y, out = net.conv(x, channels, size, filters, groups)
    net.add(y, filters, out)


def _depthwise(net: _Net) -> None:
    x, channels, size = net.pick()
    y, out = net.conv(x, channels, size, channels, channels)
    net.add(y, channels, out)


def _shared(net: _Net) -> None:
    """Two convolutions of one weight."""
    x, channels, size = net.pick()
    other, _, _ = net.pick(like=(channels, size))
    filters = int(net.rng.integers(1, 8))
    weight = net.store(net.weight(filters, channels, 1, 1))
    for value in (x, other):
        net.add(net.graph.op("Conv", value, weight, *net.bias(filters)), filters, size)


def _channelwise(net: _Net) -> None:
    x, channels, size = net.pick()
    graph, rng = net.graph, net.rng
    kind = str(rng.choice(["Relu", "HardSwish", "Clip", "Sigmoid", "LeakyRelu", "PRelu", "Mul", "Add", "BN", "Scalar"]))
    per_channel = (channels, 1, 1) if rng.random() < 0.5 else (1, channels, 1, 1)
    if kind == "Clip":
        y = graph.op("Clip", x, net.store(np.float32(-0.5)), net.store(np.float32(1.0)))
    elif kind in ("PRelu", "Mul", "Add"):
        y = graph.op(kind, x, net.store(rng.normal(size=(channels, 1, 1) if kind == "PRelu" else per_channel)))
    elif kind == "Scalar":
        y = graph.op("Mul", net.store(rng.normal(size=())), x)
    elif kind == "BN":
        stored = [net.store(rng.normal(size=channels)) for _ in range(3)]
        y = graph.op("BatchNormalization", x, *stored, net.store(rng.random(channels) + 0.5))
    else:
        y = graph.op(kind, x)
    net.add(y, channels, size)


def _gate(net: _Net) -> None:
    x, channels, size = net.pick()
    hidden = int(net.rng.integers(1, 5))
    y = net.graph.op("GlobalAveragePool", x)
    y = net.graph.op("Relu", net.graph.op("Conv", y, net.store(net.weight(hidden, channels, 1, 1)), *net.bias(hidden)))
    y = net.graph.op("Conv", y, net.store(net.weight(channels, hidden, 1, 1)), *net.bias(channels))
    net.add(net.graph.op("Mul", x, net.graph.op("Sigmoid", y)), channels, size)


def _spatial(net: _Net) -> None:
    x, channels, size = net.pick()
    graph, kind = net.graph, str(net.rng.choice(["MaxPool", "AveragePool", "Pad", "Slice", "Resize", "ConvTranspose"]))
    if kind == "ConvTranspose":
        filters = int(net.rng.integers(1, 6))
        weight = np.swapaxes(net.weight(filters, channels, 2, 2), 0, 1)
        y = graph.op(kind, x, net.store(weight), *net.bias(filters), strides=[2, 2])
        if size < 9:
            net.add(y, filters, 2 * size)
    elif kind == "Pad":
        pads = np.array([0, 0, 1, 0, 0, 0, 0, 1])
        net.add(graph.op(kind, x, net.store(pads), net.store(np.float32(net.rng.choice([0, 0.5])))), channels, size + 1)
    elif kind == "Slice" and size > 2:
        net.add(
            graph.op(kind, x, *(net.store(np.array(n)) for n in ([1, 0], [99, size - 1], [2, 3]))), channels, size - 1
        )
    elif kind == "Resize" and size < 9:
        scales = net.store(np.array([1, 1, 2, 2], np.float32))
        mode = str(net.rng.choice(["nearest", "linear"]))
        net.add(graph.op(kind, x, None, scales, mode=mode), channels, 2 * size)
    elif kind in ("MaxPool", "AveragePool") and size > 3:
        extra = {"count_include_pad": int(net.rng.integers(2))} if kind == "AveragePool" else {}
        y = graph.op(kind, x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4, **extra)
        net.add(y, channels, (size - 1) // 2 + 1)


def _opaque(net: _Net) -> None:
    x, channels, size = net.pick()
    y = net.graph.op("Softmax", x, axis=1)
    net.add(y, channels, size)


STEPS: dict[str, Callable[[_Net], None]] = {
    "conv": _conv, "gather": _gather_conv, "reorder": _reorder, "residual": _residual, "join": _join,
    "concat": _concat, "grouped": _grouped, "depthwise": _depthwise, "shared": _shared, "channelwise": _channelwise,
    "gate": _gate, "spatial": _spatial, "opaque": _opaque,
}  # fmt: skip


def _head(net: _Net, index: int) -> ir.Value:
    """A classifier of two layers behind pooling or flattening, or a value as it is."""
    value, channels, size = net.values[-1 - index]
    graph, kind = net.graph, net.rng.integers(4)
    if kind == 0:
        return graph.op("Identity", value)
    columns = channels
    if kind == 1:
        value = graph.op("ReduceMean", value, net.store(np.array([2, 3])), keepdims=0)
    elif kind == 2:
        value = graph.op("Flatten", graph.op("GlobalAveragePool", value))
    else:
        value, columns = graph.op("Reshape", value, net.store(np.array([-1, channels * size**2]))), channels * size**2
    hidden = int(net.rng.integers(1, 7))
    value = graph.op("Gemm", value, net.store(net.weight(hidden, columns)), *net.bias(hidden), transB=1)
    value = graph.op("MatMul", graph.op("Relu", value), net.store(net.weight(hidden, 3)))
    return graph.op("Add", value, net.store(net.rng.normal(size=3)))


@st.composite
def random_nets(draw: Any) -> tuple[ir.Model, dict[str, Array]]:
    """A model of one input with a dynamic batch, and a batch of two for it."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    steps = draw(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=12))
    channels, size = int(rng.integers(1, 5)), int(rng.integers(3, 9))
    graph = GraphBuilder(18)
    x = graph.input("x", ("batch", channels, size, size))
    net = _Net(graph, rng, [(x, channels, size)])
    _conv(net)
    for step in steps:
        STEPS[step](net)
    outputs = [_head(net, index) for index in range(min(len(net.values), int(rng.integers(1, 3))))]
    for index, value in enumerate(outputs):
        value.name = f"y{index}"
    return graph.model(*outputs), {"x": rng.normal(size=(2, channels, size, size)).astype(np.float32)}


def in_float64(model: ir.Model, feeds: dict[str, Array]) -> list[Array]:
    """The outputs by the reference evaluator, with weights and input in float64."""
    from onnx.reference import ReferenceEvaluator

    wide = model.clone()
    for value in wide.graph.initializers.values():
        assert value.const_value is not None
        if value.dtype == ir.DataType.FLOAT and all(use.node.op_type != "Resize" for use in value.uses()):
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float64), name=value.name)
            value.type = ir.TensorType(ir.DataType.DOUBLE)
    for value in (*wide.graph.inputs, *wide.graph.outputs):
        value.type = ir.TensorType(ir.DataType.DOUBLE)
    outputs = ReferenceEvaluator(ir.to_proto(wide)).run(None, {k: v.astype(np.float64) for k, v in feeds.items()})
    return [np.asarray(output) for output in outputs]

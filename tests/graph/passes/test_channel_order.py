"""Gathers of channels fold into the weights around them where that is exact, and stay where it is not."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from tests.conftest import Array, GraphBuilder, error_of, run_model
from tests.graph.random_nets import in_float64
from trtkp.graph.edit import WEIGHT
from trtkp.graph.passes.channel_order import channel_gathers, fold_channel_gathers

RNG = np.random.default_rng(0)


def weight(*shape: int) -> Array:
    return (RNG.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


class Net(GraphBuilder):
    """A chain of layers as a planner writes them."""

    def __init__(self, channels: int = 3, size: int = 8) -> None:
        super().__init__()
        self.count = 0
        self.x = self.input("x", ("batch", channels, size, size))

    def store(self, array: Array) -> ir.Value:
        self.count += 1
        return self.constant(f"c{self.count}", array)

    def conv(self, x: ir.Value, filters: int, channels: int, *, kernel: int = 3, groups: int = 1) -> ir.Value:
        stored = self.store(weight(filters, channels // groups, kernel, kernel)), self.store(weight(filters, 1)[:, 0])
        return self.op("Conv", x, *stored, pads=[kernel // 2] * 4, group=groups)

    def gather(self, x: ir.Value, channels: Array) -> ir.Value:
        return self.op("Gather", x, self.store(channels), axis=1)

    def head(self, x: ir.Value, channels: int) -> ir.Value:
        flat = self.op("Flatten", self.op("GlobalAveragePool", x))
        return self.op("Gemm", flat, self.store(weight(5, channels)), transB=1)


def check(model: ir.Model, left: int) -> None:
    """The fold leaves so many Gathers, and the results."""
    feeds = {"x": RNG.normal(size=(2, *model.graph.inputs[0].shape[1:])).astype(np.float32)}  # type: ignore[index]
    wanted = in_float64(model, feeds)
    before = len(channel_gathers(model))
    folded = fold_channel_gathers(model)
    assert (folded.before, folded.after) == (before, left)
    assert len(channel_gathers(model)) == left
    assert (folded.elements > 0) == (left < before)
    results = run_model(model, feeds)
    for result, want in zip(results if isinstance(results, list) else [results], wanted, strict=True):
        assert error_of(result, want) < 1e-6


def test_resnet_whose_grouped_layers_agree_keeps_no_gather() -> None:
    """Two grouped convolutions in a block; the blocks' last ones have the residual's order in common."""
    net = Net()
    h = net.op("Relu", net.conv(net.x, 16, 3))
    order = RNG.permutation(16)
    for _ in range(3):
        y = net.gather(net.conv(h, 32, 16), RNG.permutation(32))
        y = net.op("Relu", net.conv(net.gather(net.op("Relu", y), RNG.permutation(32)), 32, 32, groups=4))
        y = net.conv(net.gather(y, RNG.permutation(32)), 16, 32, kernel=1)
        y = net.gather(net.conv(y, 16, 16, groups=2), order)
        h = net.op("Relu", net.op("Add", y, h))
    check(net.model(net.head(h, 16)), 0)


def test_residual_of_different_orders_keeps_all_but_one() -> None:
    net = Net()
    h = net.op("Relu", net.conv(net.x, 16, 3))
    for _ in range(3):
        h = net.op("Add", net.gather(net.conv(h, 16, 16, groups=4), RNG.permutation(16)), h)
    # the grouped convolutions also want their inputs in their own groups
    model = net.model(net.head(h, 16))
    check(model, 3)


def test_the_larger_gather_wins() -> None:
    net = Net(size=8)
    wide = net.gather(net.conv(net.x, 8, 3, kernel=1), np.arange(8)[::-1])
    small = net.op("MaxPool", net.conv(net.x, 8, 3, kernel=1, groups=1), kernel_shape=[8, 8])
    small = net.gather(net.op("Conv", small, net.store(weight(8, 2, 1, 1)), group=4), RNG.permutation(8))
    wide = net.gather(net.op("Conv", wide, net.store(weight(8, 2, 1, 1)), group=4), RNG.permutation(8))
    model = net.model(net.head(net.op("Mul", wide, small), 8))
    check(model, 1)
    (left,) = channel_gathers(model)
    assert left.inputs[0] is not None
    assert left.inputs[0].shape is not None
    assert left.inputs[0].shape[2] == 1


@pytest.mark.parametrize("behind", ["output", "softmax", "input"])
def test_orders_that_are_fixed_stay(behind: str) -> None:
    net = Net(channels=6)
    if behind == "input":
        return check(net.model(net.conv(net.gather(net.x, RNG.permutation(6)), 6, 6, groups=3)), 1)
    y = net.gather(net.conv(net.x, 8, 6, groups=2), np.array([0, 4, 1, 5, 2, 6, 3, 7]))
    return check(net.model(net.op("Softmax", y, axis=1) if behind == "softmax" else y), 1)


def test_filters_of_a_dense_convolution_take_the_order_of_the_output() -> None:
    net = Net()
    y = net.gather(net.conv(net.x, 8, 3), RNG.permutation(8))
    model = net.model(net.op("Relu", y))
    check(model, 0)


def test_a_gather_that_drops_rows_of_padding_folds_where_they_are_few() -> None:
    """18 rows for 16 filters: two channels go along, with weights of zero; 24 are too many."""
    for rows, left in ((18, 0), (24, 1)):
        net = Net()
        y = net.gather(net.conv(net.x, rows, 3, groups=1 if rows == 24 else 3), RNG.permutation(rows)[:16])
        y = net.op("PRelu", y, net.store(weight(16, 1, 1)))
        model = net.model(net.head(net.conv(y, 8, 16), 8))
        check(model, left)


@pytest.mark.parametrize("partial", ["Sqrt", "Div", "Pow"])
def test_channels_that_go_along_stay_finite(partial: str) -> None:
    """What a filter of padding gives may lie where an operator is not defined, and zero times that is no zero."""
    net = Net()
    biases = np.where(np.arange(18) < 16, 1, 0).astype(np.float32)
    y = net.op("Conv", net.x, net.store(np.zeros((18, 3, 1, 1), np.float32)), net.store(biases))
    y = net.gather(y, np.append(np.arange(1, 16), 0))
    shifted = net.op("Sub", y, net.store(np.full((16, 1, 1), 0.5, np.float32)))
    y = {
        "Sqrt": lambda: net.op("Sqrt", shifted),
        "Div": lambda: net.op("Div", net.store(np.float32(1)), y),
        "Pow": lambda: net.op("Pow", y, net.store(np.float32(-1))),
    }[partial]()
    check(net.model(net.head(net.conv(y, 8, 16), 8)), 1)


def test_gather_of_gather_becomes_one() -> None:
    net = Net()
    y = net.gather(
        net.gather(net.op("Softmax", net.conv(net.x, 8, 3), axis=1), RNG.permutation(8)), np.array([1, 1, 2])
    )
    check(net.model(net.conv(y, 3, 3, groups=3)), 1)


def test_concat_pooling_depthwise_flatten_and_shared_weights() -> None:
    net = Net()
    a = net.gather(net.conv(net.x, 8, 3), RNG.permutation(8))
    b = net.gather(net.conv(net.x, 6, 3), RNG.permutation(6))
    y = net.op("MaxPool", net.op("Concat", a, b, axis=1), kernel_shape=[2, 2], strides=[2, 2])
    y = net.op("HardSwish", net.conv(y, 14, 14, groups=14))
    shared = net.store(weight(5, 14, 1, 1))
    other = net.op("Conv", net.conv(net.x, 14, 3), shared, strides=[2, 2])  # reads the same weight in order
    y = net.op("Concat", net.op("Conv", y, shared), other, axis=1)
    flat = net.op("Reshape", y, net.store(np.array([-1, 160])))
    check(net.model(net.op("MatMul", flat, net.store(weight(160, 4)))), 0)


def test_boxes_of_stripes_fold_behind_their_concat() -> None:
    net = Net()
    parts = [net.conv(net.x, 4, 3), net.conv(net.x, 6, 3, kernel=1)]
    y = net.op("Relu", net.gather(net.op("Concat", *parts, axis=1), RNG.permutation(10)))
    check(net.model(net.head(net.conv(y, 4, 10), 4)), 0)


def test_a_layers_output_keeps_its_name() -> None:
    """Ranges of a calibration are kept by the names of values."""
    net = Net()
    y = net.conv(net.x, 8, 3)
    gathered = net.gather(y, RNG.permutation(8))
    gathered.name = "layer output"
    for value in (y, gathered):
        value.producer().metadata_props[WEIGHT] = "w"  # type: ignore[union-attr]
    model = net.model(net.head(gathered, 8))
    check(model, 0)
    assert "layer output" in {value.name for node in model.graph for value in node.outputs}

"""Dead parts go, by how much is counted, and what is not exact stays."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from examples.nets import export
from examples.nets.resnet import resnet50
from tests.conftest import Array, GraphBuilder, error_of, run_model
from tests.graph.random_nets import in_float64
from trtkp.graph.passes.batch_norm import fold_batch_norm
from trtkp.graph.passes.channel_order import channel_gathers, fold_channel_gathers
from trtkp.graph.passes.dead import DeadParts, remove_dead
from trtkp.index.index_set import from_mask
from trtkp.model import load_model
from trtkp.pruning.nm import two_four_mask

RNG = np.random.default_rng(0)


def weight(*shape: int, dead: tuple[int, ...] = (), unread: tuple[int, ...] = ()) -> Array:
    array = (RNG.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
    array[list(dead)] = 0
    array[:, list(unread)] = 0
    return array


def shrink(graph: GraphBuilder, *outputs: ir.Value) -> tuple[ir.Model, DeadParts]:
    model = graph.model(*outputs)
    feeds = {"x": RNG.normal(size=(2, *model.graph.inputs[0].shape[1:])).astype(np.float32)}  # type: ignore[index]
    wanted = in_float64(model, feeds)
    dead = remove_dead(model, {"first": 64, "second": 64})
    results = run_model(model, feeds)
    for result, want in zip(results if isinstance(results, list) else [results], wanted, strict=True):
        assert error_of(result, want) < 1e-6
    return model, dead


def weights_of(model: ir.Model) -> dict[str, tuple[int, ...]]:
    return {str(n.name): n.inputs[1].const_value.numpy().shape for n in model.graph if n.op_type in ("Conv", "Gemm")}  # type: ignore[union-attr]


@pytest.mark.parametrize("activation", ["Relu", "Sigmoid", "HardSwish"])
@pytest.mark.parametrize("pad", [0, 1])
@pytest.mark.parametrize("bias", [-2.0, 0.0, 0.7])
def test_constant_channels_before_a_convolution(activation: str, pad: int, bias: float) -> None:
    """Without padding they go into the bias; with padding into one of them, unless they are zero."""
    graph = GraphBuilder()
    x = graph.input("x", ("batch", 3, 8, 8))
    biases = graph.constant("b", np.full(8, bias, np.float32))
    y = graph.op("Conv", x, graph.constant("w", weight(8, 3, 3, 3, dead=(1, 4, 6))), biases, pads=[1] * 4, name="first")
    y = graph.op(
        "Conv", graph.op(activation, y), graph.constant("v", weight(4, 8, 3, 3)), pads=[pad] * 4, name="second"
    )
    value = {
        "Relu": max(bias, 0),
        "Sigmoid": 1 / (1 + np.exp(-bias)),
        "HardSwish": bias * np.clip(bias / 6 + 0.5, 0, 1),
    }
    removed = 2 if pad and value[activation] != 0 else 3
    model, dead = shrink(graph, y)
    assert weights_of(model) == {"first": (8 - removed, 3, 3, 3), "second": (4, 8 - removed, 3, 3)}
    assert (dead.filters, dead.channels) == (removed, removed)
    assert dead.params == removed * (3 * 9 + 1) + removed * 4 * 9
    assert dead.macs == 64 * (removed * 3 * 9 + removed * 4 * 9)
    assert [(part.node, part.filters, part.channels) for part in dead.layers] == [
        ("first", removed, 0),
        ("second", 0, removed),
    ]


def test_a_single_constant_before_padding_stays() -> None:
    graph = GraphBuilder()
    x = graph.input("x", ("batch", 3, 8, 8))
    bias = graph.constant("b", np.ones(8, np.float32))
    y = graph.op("Conv", x, graph.constant("w", weight(8, 3, 3, 3, dead=(2,))), bias, pads=[1] * 4)
    _, dead = shrink(graph, graph.op("Conv", y, graph.constant("v", weight(4, 8, 3, 3)), pads=[1] * 4))
    assert dead.layers == ()


def test_channels_that_nobody_reads_go_through_a_chain() -> None:
    """w2 reads two channels of w1's; w1's filters 0 and 1 read three of w0's."""
    w1 = weight(6, 8, 3, 3)
    w1[:2, 3:] = 0
    graph = GraphBuilder()
    x = graph.input("x", ("batch", 3, 8, 8))
    y = graph.op("Relu", graph.op("Conv", x, graph.constant("w0", weight(8, 3, 3, 3)), pads=[1] * 4, name="first"))
    y = graph.op("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
    y = graph.op("Conv", y, graph.constant("d", weight(8, 1, 3, 3)), pads=[1] * 4, group=8, name="depthwise")
    y = graph.op("Relu", graph.op("Conv", y, graph.constant("w1", w1), pads=[1] * 4, name="second"))
    y = graph.op("Conv", y, graph.constant("w2", weight(4, 6, 3, 3, unread=(2, 3, 4, 5))), name="third")
    model, _ = shrink(graph, y)
    assert weights_of(model) == {
        "first": (3, 3, 3, 3), "depthwise": (3, 1, 3, 3), "second": (2, 3, 3, 3), "third": (4, 2, 3, 3),
    }  # fmt: skip


def residual(dead_last: tuple[int, ...], bias: float = 0.0, unread: tuple[int, ...] = ()) -> GraphBuilder:
    graph = GraphBuilder()
    x = graph.input("x", ("batch", 3, 8, 8))
    h = graph.op(
        "Relu", graph.op("Conv", x, graph.constant("w", weight(8, 3, 3, 3, dead=(5,))), pads=[1] * 4, name="stem")
    )
    y = graph.op("Relu", graph.op("Conv", h, graph.constant("a", weight(6, 8, 1, 1, unread=unread)), name="first"))
    shift = graph.constant("s", np.full(8, bias, np.float32))
    y = graph.op("Conv", y, graph.constant("v", weight(8, 6, 3, 3, dead=dead_last)), shift, pads=[1] * 4, name="second")
    graph.sum = graph.op("Relu", graph.op("Add", y, h))  # type: ignore[attr-defined]
    return graph


def test_a_residual_channel_goes_only_if_all_agree() -> None:
    """Channel 5 is zero in the stem, not in the block; where it is zero in both, it goes from both."""
    for dead_last, left in (((1,), 8), ((1, 5), 7)):
        graph = residual(dead_last)
        model, _ = shrink(graph, graph.op("Conv", graph.sum, graph.constant("z", weight(4, 8, 3, 3)), name="last"))  # type: ignore[attr-defined]
        assert weights_of(model)["stem"][0] == weights_of(model)["second"][0] == weights_of(model)["last"][1] == left


@pytest.mark.parametrize("bias", [0.0, 0.5])
def test_a_block_that_is_dead_goes_whole(bias: float) -> None:
    graph = residual(tuple(range(8)), bias)
    model, dead = shrink(graph, graph.op("Conv", graph.sum, graph.constant("z", weight(4, 8, 3, 3)), name="last"))  # type: ignore[attr-defined]
    assert not {"first", "second"} & set(weights_of(model))
    assert {part.node: part.macs for part in dead.layers}["second"] == 64 * 8 * 6 * 9


def test_a_gather_counts_from_either_end() -> None:
    graph = GraphBuilder()
    x = graph.input("x", ("batch", 3, 8, 8))
    y = graph.op("Conv", x, graph.constant("w", weight(8, 3, 3, 3)), pads=[1] * 4, name="first")
    y = graph.op("Gather", y, graph.constant("picked", np.array([-3, 1, -5, -8])), axis=1)
    y = graph.op("Conv", y, graph.constant("v", weight(4, 4, 1, 1, unread=(1,))), name="second")
    model, dead = shrink(graph, y)
    assert weights_of(model) == {"first": (3, 3, 3, 3), "second": (4, 3, 1, 1)}
    assert (dead.filters, dead.channels) == (5, 1)


def test_no_tensor_is_left_empty() -> None:
    """All filters of the last but one convolution are dead, without a residual beside them."""
    graph = GraphBuilder()
    x = graph.input("x", ("batch", 3, 8, 8))
    y = graph.op("Relu", graph.op("Conv", x, graph.constant("w", weight(8, 3, 3, 3)), pads=[1] * 4))
    bias = graph.constant("b", np.arange(8, dtype=np.float32))
    y = graph.op("Conv", y, graph.constant("v", weight(8, 8, 3, 3, dead=tuple(range(8)))), bias, name="dead")
    flat = graph.op("Flatten", graph.op("GlobalAveragePool", y))
    model, _ = shrink(graph, graph.op("Gemm", flat, graph.constant("g", weight(4, 8)), transB=1, name="head"))
    assert all(min(shape) >= 1 for shape in weights_of(model).values())
    assert weights_of(model)["dead"] == (1, 1, 3, 3)


def test_groups_go_whole() -> None:
    graph = GraphBuilder()
    x = graph.input("x", ("batch", 3, 8, 8))
    y = graph.op("Relu", graph.op("Conv", x, graph.constant("w", weight(8, 3, 3, 3)), pads=[1] * 4, name="first"))
    y = graph.op("Conv", y, graph.constant("g", weight(8, 2, 3, 3)), group=4, pads=[1] * 4, name="grouped")
    y = graph.op("Conv", y, graph.constant("v", weight(4, 8, 3, 3, unread=(0, 2, 3, 6, 7))), name="last")
    model, _ = shrink(graph, y)
    assert weights_of(model) == {"first": (4, 3, 3, 3), "grouped": (4, 2, 3, 3), "last": (4, 4, 3, 3)}


def test_index_sets_of_what_is_left() -> None:
    graph = GraphBuilder()
    x = graph.input("x", ("batch", 3, 8, 8))
    first, second = weight(8, 3, 3, 3, dead=(1, 4)), weight(4, 8, 3, 3)
    second[0, 1] = 0
    second[0, 4:] = 0
    sets = {"w": from_mask(first != 0), "v": from_mask(second != 0)}
    bias = graph.constant("b", np.ones(8, np.float32))
    y = graph.op("Conv", x, graph.constant("w", first), bias, pads=[1] * 4)
    model, dead = shrink(graph, graph.op("Conv", y, graph.constant("v", second), pads=[1] * 4))
    left = dead.restrict(model, sets)
    assert {name: index.shape for name, index in left.items()} == {"w": (7, 3, 3, 3), "v": (4, 7, 3, 3)}
    for name, index in left.items():
        stored = model.graph.initializers[name].const_value
        assert stored is not None
        assert np.array_equal(index.mask(), stored.numpy() != 0)


def test_a_two_four_refinement_goes_and_its_lists_stay() -> None:
    """Four of 16 channels go, and with them the quads; filters share their list as before."""
    graph = GraphBuilder()
    x = graph.input("x", ("batch", 3, 8, 8))
    first, second = weight(16, 3, 3, 3, dead=(0, 5, 6, 9)), weight(8, 16, 3, 3)
    listed = np.ones(second.shape, bool)
    listed[:4, 12:], listed[4:, :2] = False, False
    index = from_mask(listed)
    index = index.refined(two_four_mask(second, index))
    second[~index.mask()] = 0
    model, dead = shrink(graph, graph.op("Conv", graph.op("Conv", x, graph.constant("w", first), pads=[1] * 4),
                                         graph.constant("v", second), pads=[1] * 4))  # fmt: skip
    assert dead.channels == 4
    left = dead.restrict(model, {"v": index})["v"]
    channels = np.delete(np.arange(16), [0, 5, 6, 9])
    assert left.nm_mask is None
    assert np.array_equal(left.mask(), listed[:, channels])
    assert left.filter_groups == index.filter_groups == 2


@pytest.mark.serial
@pytest.mark.slow
def test_resnet_50_takes_seconds(tmp_path: Path) -> None:
    """All passes over the whole net, a tenth of its filters dead and every output out of order."""
    torch.export.save(export(resnet50().eval(), (3, 224, 224)), tmp_path / "resnet50.pt2")
    model = load_model(tmp_path / "resnet50.pt2").graph()
    fold_batch_norm(model)
    for node in list(model.graph):
        if node.op_type != "Conv":
            continue
        stored = node.inputs[1]
        assert stored is not None
        assert stored.const_value is not None
        array = stored.const_value.numpy().copy()
        array[RNG.random(len(array)) < 0.1] = 0
        stored.const_value = ir.tensor(array, name=stored.name)
        y = node.outputs[0]
        order = ir.val(f"{y.name}.order", ir.DataType.INT64, [len(array)])
        order.const_value = ir.tensor(RNG.permutation(len(array)), name=order.name)
        model.graph.register_initializer(order)
        gather = ir.node("Gather", [y, order], {"axis": 1}, name=f"{y.name}.gather")
        gather.outputs[0].name = f"{y.name}.ordered"
        ir.convenience.replace_all_uses_with(y, gather.outputs[0])
        gather.replace_input_with(0, y)
        model.graph.insert_after(node, gather)
    start = time.thread_time()  # of this thread alone: others may use the machine
    dead = remove_dead(model)
    folded = fold_channel_gathers(model)
    assert time.thread_time() - start < 10
    assert len(dead.layers) > 40
    assert (folded.before, folded.after, channel_gathers(model)) == (53, 0, [])

"""Where pairs stand: the rules of both variants, on graphs small enough to read."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from trtkp.calib.placement import Pair, find_sites, place, root
from trtkp.graph.passes.pack import pack_convolutions
from trtkp.index.index_set import from_mask
from trtkp.plan.lowerings import LOWERINGS
from trtkp.plan.planner import apply_plan


def weight(filters: int, channels: int, size: int = 3) -> np.ndarray[Any, Any]:
    return np.random.default_rng(filters).standard_normal((filters, channels, size, size)).astype(np.float32)


def conv(graph: Any, x: ir.Value, name: str, filters: int, channels: int) -> ir.Value:
    return graph.op("Conv", x, graph.constant(f"{name}.w", weight(filters, channels)), name=name, output=f"{name}.y",
                    pads=[1] * 4)  # fmt: skip


def by_value(pairs: list[Pair]) -> dict[str, Pair]:
    assert len({pair.value for pair in pairs}) == len(pairs)
    return {pair.value: pair for pair in pairs}


@pytest.fixture
def residual(new_graph: Any) -> ir.Model:
    """``relu(a) -> b -> relu -> c, c + relu(a) -> relu -> Gemm``."""
    graph = new_graph()
    first = graph.op("Relu", conv(graph, graph.input("x", ("n", 4, 8, 8)), "a", 8, 4), output="ra")
    second = graph.op("Relu", conv(graph, first, "b", 8, 8), output="rb")
    total = graph.op("Add", conv(graph, second, "c", 8, 8), first, name="add", output="sum")
    pooled = graph.op("GlobalAveragePool", graph.op("Relu", total, output="rs"), output="pool")
    flat = graph.op("Flatten", pooled, output="flat")
    matrix = graph.constant("fc", np.ones((8, 5), np.float32))
    return graph.model(graph.op("Gemm", flat, matrix, name="fc", output="y"))


def test_explicit_pairs_stand_on_inputs_and_the_residual(residual: ir.Model) -> None:
    pairs = by_value(place(residual, "explicit").pairs)
    assert {name: pair.readers for name, pair in pairs.items()} == {
        "x": (("a", 0),),
        "ra": (("b", 0), ("add", 1)),
        "rb": (("c", 0),),
        "flat": (("fc", 0),),
    }
    assert pairs["flat"].range_of == "pool"  # Flatten only moves
    assert not any(pair.unsigned for pair in pairs.values())


def test_no_residual_pair_where_its_convolution_is_not_quantised(residual: ir.Model) -> None:
    placement = place(residual, "explicit", {"b.w"})
    assert [site.node for site in placement.sites] == ["b"]
    assert by_value(placement.pairs)["ra"].readers == (("b", 0),)


def test_of_two_convolutions_the_later_one_takes_the_sum(new_graph: Any) -> None:
    graph = new_graph()
    x = graph.input("x", ("n", 4, 8, 8))
    left, right = conv(graph, x, "left", 4, 4), conv(graph, x, "right", 4, 4)
    model = graph.model(graph.op("Add", left, right, name="add", output="y"))
    pairs = by_value(place(model, "explicit").pairs)
    assert pairs["left.y"].readers == (("add", 0),)
    assert "right.y" not in pairs


def test_onnxruntime_wants_both_sides(residual: ir.Model) -> None:
    pairs = by_value(place(residual, "onnxruntime").pairs)
    assert {name: pair.unsigned for name, pair in pairs.items()} == {
        "x": False, "ra": True, "rb": True, "c.y": False, "rs": True, "flat": True, "pool": True,
    }  # fmt: skip
    assert all(pair.readers is None for pair in pairs.values())


def test_nothing_across_an_activation_that_does_not_fuse(new_graph: Any) -> None:
    graph = new_graph()
    value = conv(graph, graph.input("x", ("n", 4, 8, 8)), "a", 4, 4)
    silu = graph.op("Mul", value, graph.op("Sigmoid", value), output="silu")
    model = graph.model(conv(graph, silu, "b", 4, 4))
    assert set(by_value(place(model, "explicit").pairs)) == {"x", "silu"}
    pairs = by_value(place(model, "onnxruntime").pairs)
    assert set(pairs) == {"x", "a.y", "silu"}  # the output of the net stays as it is
    assert not any(pair.unsigned for pair in pairs.values())


def test_what_cannot_be_quantised_is_left_alone(new_graph: Any) -> None:
    graph = new_graph()
    x = graph.input("x", ("n", 4, 8, 8))
    computed = graph.op("Conv", x, graph.input("w", (4, 4, 1, 1)))
    up = graph.op("ConvTranspose", computed, graph.constant("t", weight(4, 4)))
    flat = graph.op("Flatten", graph.op("GlobalAveragePool", up))
    half = graph.op("Gemm", flat, graph.constant("m", np.ones((4, 3), np.float32)), alpha=0.5)
    model = graph.model(half)
    assert find_sites(model) == []
    assert place(model, "onnxruntime").pairs == []


@pytest.mark.parametrize(
    ("op", "inputs", "attributes"),
    [
        ("MaxPool", [], {"kernel_shape": [2, 2]}),
        ("Gather", [np.array([1, 0, 2], np.int64)], {"axis": 1}),
        ("Pad", [np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)], {}),
        ("Transpose", [], {"perm": [0, 1, 3, 2]}),
    ],
)
def test_moves(new_graph: Any, op: str, inputs: list[Any], attributes: dict[str, Any]) -> None:
    graph = new_graph()
    x = graph.input("x", ("n", 4, 8, 8))
    rest = [graph.constant(f"i{i}", array) for i, array in enumerate(inputs)]
    moved = graph.op(op, graph.op("Relu", x, output="r"), *rest, **attributes)
    assert root(moved).name == "r"


@pytest.mark.parametrize("op", ["AveragePool", "Sigmoid"])
def test_what_computes_has_a_range_of_its_own(new_graph: Any, op: str) -> None:
    graph = new_graph()
    attributes = {"kernel_shape": [2, 2]} if op == "AveragePool" else {}
    value = graph.op(op, graph.input("x", ("n", 4, 8, 8)), output="v", **attributes)
    assert root(value).name == "v"


def masks() -> dict[str, np.ndarray[Any, Any]]:
    """A mask per lowering that takes it elsewhere than dense."""
    stripes = np.zeros((8, 8, 3, 3), bool)
    stripes[:4, :, :2, 1:], stripes[4:, :, [0, 1], [0, 2]] = True, True
    shared = np.zeros((8, 8, 3, 3), bool)
    shared[:, ::2, [0, 1, 2], [0, 1, 2]] = True
    kernels = np.zeros((8, 8, 3, 3), bool)
    kernels[:4, :4], kernels[4:, 4:] = True, True
    grouped = dict.fromkeys(("gather", "gather-1", "gather-2", "split"), kernels)
    return {"dense": stripes, "box": stripes, "rectangles": stripes, "taps": shared, **grouped}


def test_every_lowering_has_a_mask() -> None:
    more_groups = {f"gather-{groups}" for groups in (4, 8, 16, 32)}  # built as gather-2 is
    assert set(masks()) == set(LOWERINGS) - more_groups


@pytest.mark.parametrize("lowering", sorted(masks()))
def test_every_lowering_reads_one_range(new_graph: Any, lowering: str) -> None:
    """Parts of a layer belong to it, share the range of its input, and their sums are no residuals."""
    graph = new_graph()
    before = graph.op("Relu", conv(graph, graph.input("x", ("n", 4, 8, 8)), "a", 8, 4), output="ra")
    after = graph.op("Add", conv(graph, before, "b", 8, 8), before, name="add", output="sum")
    model = graph.model(graph.op("Relu", after, output="y"))
    mask = masks()[lowering]
    array = np.where(mask, weight(8, 8), np.float32(0))
    model.graph.initializers["b.w"].const_value = ir.tensor(array, name="b.w")
    pack_convolutions(model, {"b.w": from_mask(mask, 1)}, {})
    planned = apply_plan(model, {"b": lowering})
    assert {site.layer for site in find_sites(planned)} == {"a.w", "b.w"}
    parts = 2 if lowering in ("box", "rectangles", "taps") else 1
    assert sum(site.layer == "b.w" for site in find_sites(planned)) >= parts
    explicit = place(planned, "explicit")
    wanted = {"x", "ra"} | ({"y/Conv_0_output"} if lowering == "none" else set())
    assert set(explicit.tensors) <= wanted | {"ra"}
    adds = [node for node in planned.graph if node.op_type == "Add"]
    quantised_adds = {name for pair in explicit.pairs for name, _ in pair.readers or () if "Add" in name}
    assert len(quantised_adds) <= 1
    assert len(adds) >= 1

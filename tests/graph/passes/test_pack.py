"""Rewriting convolutions into packed operators: what is fused, what is not, and that results stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from trtkp.errors import InputError
from trtkp.graph.edit import WEIGHT, weight_name
from trtkp.graph.layers import conv_layers
from trtkp.graph.ops import OpName
from trtkp.graph.packing import unpack
from trtkp.graph.passes.batch_norm import fold_batch_norm
from trtkp.graph.passes.pack import apply_masks, pack_convolutions, packed_nodes, read_packed
from trtkp.index.index_set import IndexSet, Kind, from_mask

Array = np.ndarray[Any, Any]
Build = Callable[[Any, ir.Value], ir.Value]
RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 4, 7, 7)).astype(np.float32) * 3
MASK = RNG.random((4, 4, 3, 3)) < 0.5
W = np.where(MASK, RNG.normal(size=MASK.shape), 0).astype(np.float32)
INDEX = from_mask(MASK)


def conv(graph: Any, x: ir.Value, parameter: str = "w", **attributes: Any) -> ir.Value:
    """A 3x3 convolution of 4 channels that keeps the size; its weight has the zeros of MASK already."""
    known = {value.name: value for value in graph.initializers}
    weight = known.get(parameter) or graph.constant(parameter, W)
    return graph.op("Conv", x, weight, pads=[1, 1, 1, 1], **attributes)


def check(
    model: ir.Model, run: Any, relative_error: Any, sets: dict[str, IndexSet] | None = None, **feeds: Array
) -> list[str]:
    """Pack, hold the results against the graph before, and give the operators in order."""
    inputs = {value.name: X for value in model.graph.inputs} | feeds
    before = run(model, inputs)
    outputs = [(value.name, value.dtype, value.shape) for value in model.graph.outputs]
    sizes = {
        layer.node: layer.input_size for layer in conv_layers(model, {k: v.shape for k, v in inputs.items()}).layers
    }
    created = pack_convolutions(model, {"w": INDEX} if sets is None else sets, sizes)
    assert created == packed_nodes(model)
    assert [(value.name, value.dtype, value.shape) for value in model.graph.outputs] == outputs
    onnx.checker.check_model(ir.to_proto(model), full_check=True)  # sorted, too
    assert {str(key[1]) for key in model.functions} == {node.op_type for node in created}
    after = run(model, inputs)
    for got, want in zip(after, before, strict=True) if isinstance(before, list) else [(after, before)]:
        assert relative_error(got, want.astype(np.float64)) < 1e-6
    return [node.op_type for node in model.graph]


def scalar(graph: Any, name: str, value: float) -> ir.Value:
    return graph.constant(name, np.array(value, np.float32))


ACTIVATION: dict[str, tuple[Build, str]] = {
    "relu": (lambda g, v: g.op("Relu", v), "Relu"),
    "relu6": (lambda g, v: g.op("Clip", v, scalar(g, "l", 0), scalar(g, "h", 6)), "Relu6"),
    "silu": (lambda g, v: g.op("Mul", v, g.op("Sigmoid", v)), "Silu"),
    "silu turned": (lambda g, v: g.op("Mul", g.op("Sigmoid", v), v), "Silu"),
    "hard swish": (lambda g, v: g.op("HardSwish", v), "HardSwish"),
    "hard swish in two": (lambda g, v: g.op("Mul", v, g.op("HardSigmoid", v, alpha=1 / 6, beta=0.5)), "HardSwish"),
    "leaky": (lambda g, v: g.op("LeakyRelu", v, alpha=0.25), "LeakyRelu"),
    "leaky by default": (lambda g, v: g.op("LeakyRelu", v), "LeakyRelu"),
    "nothing": (lambda g, v: v, ""),
}


@pytest.mark.parametrize("residual", [None, "first", "second"])
@pytest.mark.parametrize("name", ACTIVATION)
def test_fused(name: str, residual: str | None, new_graph: Any, run: Any, relative_error: Any) -> None:
    build, activation = ACTIVATION[name]
    graph = new_graph()
    x = graph.input("x", ("n", 4, 7, 7))
    y = conv(graph, x)
    if residual:
        y = graph.op("Add", *((x, y) if residual == "first" else (y, x)))
    model = graph.model(build(graph, y))
    op = OpName("PatternConv", residual is not None, activation)
    assert check(model, run, relative_error) == [str(op)]
    (node,) = packed_nodes(model)
    attributes = node.attributes
    assert attributes.get_string("plugin_namespace") == "trtkp"
    assert attributes.get_string("plugin_version") == "1"
    assert ("alpha" in attributes) == (activation == "LeakyRelu")
    if name == "leaky":
        assert attributes.get_float("alpha") == 0.25
    assert len(node.inputs) == 6 + (residual is not None)
    assert node.metadata_props[WEIGHT] == weight_name(node) == "w"


def gate_twice(graph: Any, value: ir.Value) -> ir.Value:
    gate = graph.op("Sigmoid", value)
    return graph.op("Add", graph.op("Mul", value, gate), gate)


NOT_FUSED: dict[str, tuple[Build, list[str]]] = {
    "other bounds": (
        lambda g, v: g.op("Clip", v, scalar(g, "l", 0), scalar(g, "h", 5)), ["PatternConv", "Clip"]
    ),
    "another lower bound": (
        lambda g, v: g.op("Clip", v, scalar(g, "l", -1), scalar(g, "h", 6)), ["PatternConv", "Clip"]
    ),
    "no lower bound": (lambda g, v: g.op("Clip", v, None, scalar(g, "h", 6)), ["PatternConv", "Clip"]),
    "no upper bound": (lambda g, v: g.op("Clip", v, scalar(g, "l", 0)), ["PatternConv", "Clip"]),
    "computed bound": (
        lambda g, v: g.op("Clip", v, scalar(g, "l", 0), g.op("ReduceMax", v, keepdims=0)),
        ["PatternConv", "ReduceMax", "Clip"],
    ),
    "another slope": (
        lambda g, v: g.op("Mul", v, g.op("HardSigmoid", v)), ["PatternConv", "HardSigmoid", "Mul"]
    ),
    "another gate": (lambda g, v: g.op("Mul", v, g.op("Tanh", v)), ["PatternConv", "Tanh", "Mul"]),
    "gate of something else": (
        lambda g, v: g.op("Mul", v, g.op("Sigmoid", g.op("Neg", v))), ["PatternConv", "Neg", "Sigmoid", "Mul"]
    ),
    "product with something else": (
        lambda g, v: g.op("Add", g.op("Sigmoid", v), g.op("Mul", v, scalar(g, "two", 2))),
        ["PatternConv", "Sigmoid", "Mul", "Add"],
    ),
    "gate that is read again": (
        gate_twice, ["PatternConv", "Sigmoid", "Mul", "Add"]
    ),
    "square": (lambda g, v: g.op("Mul", v, v), ["PatternConv", "Mul"]),
    "value that is read again": (
        lambda g, v: g.op("Sub", g.op("Relu", v), v), ["PatternConv", "Relu", "Sub"]
    ),
    "scalar residual": (lambda g, v: g.op("Add", v, scalar(g, "one", 1)), ["PatternConv", "Add"]),
    "residual per channel": (
        lambda g, v: g.op("Add", v, g.constant("c", np.ones((1, 4, 1, 1), np.float32))), ["PatternConv", "Add"]
    ),
    "residual of one image": (
        lambda g, v: g.op("Add", v, g.constant("c", np.ones((1, 4, 7, 7), np.float32))), ["PatternConv", "Add"]
    ),
    "residual of a pooled input": (
        lambda g, v: g.op("Add", g.op("GlobalAveragePool", g.inputs[0]), v),
        ["PatternConv", "GlobalAveragePool", "Add"],
    ),
    "sum with itself": (lambda g, v: g.op("Add", v, v), ["PatternConv", "Add"]),
    "sub": (lambda g, v: g.op("Sub", v, g.inputs[0]), ["PatternConv", "Sub"]),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_FUSED)
def test_not_fused(name: str, new_graph: Any, run: Any, relative_error: Any) -> None:
    build, operators = NOT_FUSED[name]
    graph = new_graph()
    y = conv(graph, graph.input("x", ("n", 4, 7, 7)))
    assert check(graph.model(build(graph, y)), run, relative_error) == operators


def test_not_fused_where_the_intermediate_is_an_output(new_graph: Any, run: Any, relative_error: Any) -> None:
    graph = new_graph()
    x = graph.input("x", ("n", 4, 7, 7))
    y = conv(graph, x)
    assert check(graph.model(graph.op("Relu", y), y), run, relative_error) == ["PatternConv", "Relu"]
    graph = new_graph()
    x = graph.input("x", ("n", 4, 7, 7))
    total = graph.op("Add", conv(graph, x), x)
    assert check(graph.model(graph.op("Relu", total), total), run, relative_error) == ["PatternConvAdd", "Relu"]
    graph = new_graph()
    y = conv(graph, graph.input("x", ("n", 4, 7, 7)))
    gate = graph.op("Sigmoid", y)
    model = graph.model(graph.op("Mul", y, gate), gate)
    assert check(model, run, relative_error) == ["PatternConv", "Sigmoid", "Mul"]


def test_unknown_shapes_are_not_fused(new_graph: Any) -> None:
    graph = new_graph()
    x = graph.input("x", ("n", 4, 7, 7))
    model = graph.model(graph.op("Add", conv(graph, x), x), infer=False)
    pack_convolutions(model, {"w": INDEX}, {})
    assert [node.op_type for node in model.graph] == ["PatternConv", "Add"]


@pytest.mark.parametrize("later", [False, True])
def test_residual_from_before_and_from_after_the_convolution(
    later: bool, new_graph: Any, run: Any, relative_error: Any
) -> None:
    graph = new_graph()
    x = graph.input("x", ("n", 4, 7, 7))
    if later:
        y = conv(graph, x)
        branch = graph.op("Tanh", graph.op("Neg", x))
    else:
        branch = graph.op("Tanh", graph.op("Neg", x))
        y = conv(graph, x)
    model = graph.model(graph.op("Relu", graph.op("Add", branch, y)))
    assert check(model, run, relative_error) == ["Neg", "Tanh", "PatternConvAddRelu"]


def test_both_sides_of_the_add_are_packed(new_graph: Any, run: Any, relative_error: Any) -> None:
    graph = new_graph()
    x = graph.input("x", ("n", 4, 7, 7))
    left, right = conv(graph, x), conv(graph, graph.op("Neg", x), "v")
    model = graph.model(graph.op("Relu", graph.op("Add", left, right)))
    assert check(model, run, relative_error, {"w": INDEX, "v": INDEX}) == ["Neg", "PatternConv", "PatternConvAddRelu"]
    # the first takes the sum, as the second comes before it
    first, second = packed_nodes(model)
    assert weight_name(second) == "w"
    assert second.inputs[6] is first.outputs[0]


def test_residual_block_in_which_every_reader_counts(new_graph: Any, run: Any, relative_error: Any) -> None:
    graph = new_graph()
    x = graph.input("x", ("n", 4, 7, 7))
    trunk = graph.op("Relu", conv(graph, x))
    y = graph.op("Relu", conv(graph, trunk, "v"))
    y = graph.op("Relu", graph.op("Add", conv(graph, y, "u"), trunk))
    model = graph.model(y)
    operators = check(model, run, relative_error, dict.fromkeys("wvu", INDEX))
    assert operators == ["PatternConvRelu", "PatternConvRelu", "PatternConvAddRelu"]


def test_shared_weight_and_anonymous_names(new_graph: Any, run: Any, relative_error: Any) -> None:
    graph = new_graph()
    x = graph.input("x", ("n", 4, 7, 7))
    y = graph.op("Relu", conv(graph, x, "onnx::Conv_12"))
    y = conv(graph, y, "onnx::Conv_12", strides=[2, 2])
    model = graph.model(y)
    for node in model.graph:
        node.name = None
    assert check(model, run, relative_error, {"onnx::Conv_12": INDEX}) == ["PatternConvRelu", "PatternConv"]
    assert "onnx::Conv_12" not in model.graph.initializers
    one, two = packed_nodes(model)
    assert one.inputs[1] is not two.inputs[1]
    assert np.array_equal(unpack(read_packed(one)[1]), W)
    assert np.array_equal(unpack(read_packed(two)[1]), W)


def test_weight_that_another_operator_reads_stays(new_graph: Any, run: Any, relative_error: Any) -> None:
    graph = new_graph()
    y = conv(graph, graph.input("x", ("n", 4, 7, 7)))
    weight = next(value for value in graph.initializers if value.name == "w")
    model = graph.model(y, graph.op("Neg", weight))
    assert check(model, run, relative_error) == ["PatternConv", "Neg"]


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("name", ["c", None])
def test_auto_pad_is_resolved(mode: str, name: str | None, new_graph: Any, run: Any, relative_error: Any) -> None:
    graph = new_graph()
    x, weight = graph.input("x", ("n", 4, 8, 7)), graph.constant("w", W)
    y = graph.op("Conv", x, weight, auto_pad=mode, strides=[2, 3])
    model = graph.model(y)
    model.graph[0].name = name
    x_value = np.concatenate([X, X[:, :, :1]], axis=2)
    assert check(model, run, relative_error, x=x_value) == ["PatternConv"]
    assert "auto_pad" not in packed_nodes(model)[0].attributes


def test_what_has_no_index_set_or_cannot_be_packed_stays(new_graph: Any, run: Any, relative_error: Any) -> None:
    graph = new_graph()
    x = graph.input("x", ("n", 4, 7, 7))
    y = graph.op("Relu", conv(graph, x, "v"))
    computed = graph.op("Conv", y, graph.op("Neg", graph.constant("w", W)))
    model = graph.model(computed)
    operators = [node.op_type for node in model.graph]
    assert check(model, run, relative_error) == operators
    assert "trtkp" not in model.graph.opset_imports
    assert len(model.functions) == 0


def test_batch_norm_before_packing(new_graph: Any, run: Any, relative_error: Any) -> None:
    graph = new_graph()
    x = graph.input("x", ("n", 4, 7, 7))
    values = [graph.constant(f"bn.{i}", RNG.uniform(0.5, 2, size=4).astype(np.float32)) for i in range(4)]
    y = graph.op("Relu", graph.op("Add", x, graph.op("BatchNormalization", conv(graph, x), *values)))
    model = graph.model(y)
    before = run(model, x=X)
    fold_batch_norm(model)
    assert check(model, run, relative_error) == ["PatternConvAddRelu"]
    assert relative_error(run(model, x=X), before.astype(np.float64)) < 1e-6


@pytest.mark.parametrize("kind", list(Kind))
def test_read_packed_gives_what_was_packed(kind: Kind, new_graph: Any) -> None:
    mask = MASK.copy()
    if kind is Kind.KERNEL:
        mask[:] = mask[:, :, :1, :1]
    elif kind is Kind.STRIPE:
        mask[:] = mask[:, :1]
    graph = new_graph()
    model = graph.model(graph.op("Relu", conv(graph, graph.input("x", ("n", 4, 7, 7)))))
    (node,) = pack_convolutions(model, {"w": from_mask(mask)}, {}, row_multiple=3, list_multiple=5)
    op, packed = read_packed(node)
    assert op == OpName(packed.base, residual=False, activation="Relu")
    assert (packed.weight_shape, packed.groups) == ((4, 4, 3, 3), 1)
    assert np.array_equal(unpack(packed), np.where(mask, W, 0))


def test_apply_masks(new_graph: Any) -> None:
    graph = new_graph()
    dense = RNG.normal(size=W.shape).astype(np.float16)
    y = graph.op("Conv", graph.input("x", ("n", 4, 7, 7), np.float16), graph.constant("w", dense))
    model = graph.model(y)
    apply_masks(model, {"w": MASK})
    stored = model.graph.initializers["w"].const_value
    assert stored is not None
    assert stored.numpy().dtype == np.float16
    assert np.array_equal(stored.numpy(), np.where(MASK, dense, 0))
    assert np.array_equal(model.graph[0].inputs[1].const_value.numpy(), stored.numpy())


def test_index_sets_of_another_model(new_graph: Any) -> None:
    def model() -> ir.Model:
        graph = new_graph()
        return graph.model(conv(graph, graph.input("x", ("n", 4, 7, 7))))

    other = np.ones((4, 4, 1, 9), bool)
    with pytest.raises(InputError, match=r"layer w: weight is \(4, 4, 3, 3\), its mask \(4, 4, 1, 9\)"):
        apply_masks(model(), {"w": other})
    with pytest.raises(InputError, match=r"layer w: weight is \(4, 4, 3, 3\).* for \(4, 4, 1, 9\)"):
        pack_convolutions(model(), {"w": from_mask(other)}, {})
    with pytest.raises(InputError, match=r"layer w: weight is .* in 1 groups, .* in 2 groups"):
        pack_convolutions(model(), {"w": from_mask(MASK, groups=2)}, {})
    with pytest.raises(InputError, match="layer ghost: the graph has no such weight"):
        apply_masks(model(), {"ghost": MASK})

"""Half precision: the types are in the graph, zeros stay, and what must stay float32 does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from trtkp.errors import InputError
from trtkp.graph.packing import unpack
from trtkp.graph.passes.pack import pack_convolutions, read_packed
from trtkp.graph.passes.precision import to_float16
from trtkp.index.index_set import from_mask

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 4, 8, 8)).astype(np.float32)
MASK = RNG.random((6, 4, 3, 3)) < 0.5
W = np.where(MASK, RNG.normal(size=MASK.shape), 0).astype(np.float32)


def types(model: ir.Model) -> dict[str, Any]:
    """Inferred type of every value."""
    proto = ir.to_proto(model)
    del proto.graph.value_info[:]
    onnx.checker.check_model(proto, full_check=True)
    inferred = ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))
    values: Iterator[ir.Value] = (v for node in inferred.graph for v in (*node.inputs, *node.outputs) if v is not None)
    return {str(value.name): value.dtype for value in values}


def check(model: ir.Model, run: Any, relative_error: Any, bound: float = 5e-3, x: Any = X) -> ir.Model:
    """Convert with both kinds of inputs and outputs; compare, and give the one that keeps them."""
    want = run(model, x=x).astype(np.float64)
    operators = [node.op_type for node in model.graph]
    kept, half = to_float16(model), to_float16(model, keep_io=False)
    # the model itself is as before
    assert np.array_equal(run(model, x=x), want)
    assert [node.op_type for node in model.graph] == operators
    for converted, dtype in ((kept, np.float32), (half, np.float16)):
        io = {value.dtype for value in (*converted.graph.inputs, *converted.graph.outputs)}
        assert io == {ir.DataType.from_numpy(np.dtype(dtype))}
        got = run(converted, x=x.astype(dtype))
        assert got.dtype == dtype
        assert relative_error(got, want) < bound
        kinds = types(converted)
        for node in converted.graph:
            if node.op_type in ("Conv", "Relu", "Add", "BatchNormalization") or node.domain == "trtkp":
                floats = [kinds[str(v.name)] for v in (*node.inputs, *node.outputs) if v is not None]
                assert {kind for kind in floats if kind.is_floating_point()} == {ir.DataType.FLOAT16}
    names = [value.name for value in (*model.graph.inputs, *model.graph.outputs)]
    assert [value.name for value in (*kept.graph.inputs, *kept.graph.outputs)] == names
    assert [value.name for value in (*half.graph.inputs, *half.graph.outputs)] == names
    return kept


def conv(graph: Any, x: ir.Value, name: str = "w") -> ir.Value:
    return graph.op("Conv", x, graph.constant(name, W), graph.constant(f"{name}.b", W[:, 0, 0, 0]), pads=[1] * 4)


def test_convolution_and_activation(new_graph: Any, run: Any, relative_error: Any) -> None:
    graph = new_graph()
    y = graph.op("Relu", conv(graph, graph.input("x", ("n", 4, 8, 8))))
    half = check(graph.model(y), run, relative_error)
    assert [node.op_type for node in half.graph] == ["Cast", "Conv", "Relu", "Cast"]
    stored = half.graph.initializers["w"].const_value
    assert stored is not None
    assert np.array_equal(stored.numpy() != 0, MASK)
    assert np.array_equal(stored.numpy()[MASK], W[MASK].astype(np.float16))


def test_tiny_weights_do_not_become_zero_and_zeros_stay(new_graph: Any) -> None:
    graph = new_graph()
    weight = np.array([0.0, -0.0, 1e-12, -1e-12, 6.1e-5, 65504.0], np.float32).reshape(6, 1, 1, 1)
    y = graph.op("Conv", graph.input("x", ("n", 1, 8, 8)), graph.constant("w", weight))
    stored = to_float16(graph.model(y)).graph.initializers["w"].const_value
    assert stored is not None
    values = stored.numpy().ravel()
    assert (values[:2] == 0).all()
    assert (values[2:] != 0).all()
    assert values[5] == 65504


def test_packed_operators(new_graph: Any, run: Any, relative_error: Any) -> None:
    graph = new_graph()
    x = graph.input("x", ("n", 4, 8, 8))
    y = graph.op("LeakyRelu", graph.op("Add", conv(graph, x), conv(graph, x, "v")), alpha=0.2)
    model = graph.model(y)
    pack_convolutions(model, {"w": from_mask(MASK), "v": from_mask(MASK)}, {})
    half = check(model, run, relative_error)
    packed = [node for node in half.graph if node.domain == "trtkp"]
    assert [node.op_type for node in packed] == ["PatternConv", "PatternConvAddLeakyRelu"]
    assert packed[1].attributes.get_float("alpha") == np.float32(0.2)
    for node in packed:
        assert [value.dtype for value in node.inputs[2:5]] == [ir.DataType.INT32] * 3
        assert np.array_equal(unpack(read_packed(node)[1]), W.astype(np.float16))
    assert set(half.functions) == set(model.functions)


def test_batch_norm_keeps_its_epsilon(new_graph: Any, run: Any, relative_error: Any) -> None:
    graph = new_graph()
    values = [graph.constant(f"bn.{i}", RNG.uniform(0.5, 2, size=6).astype(np.float32)) for i in range(4)]
    y = graph.op("BatchNormalization", conv(graph, graph.input("x", ("n", 4, 8, 8))), *values, epsilon=1e-5)
    half = check(graph.model(graph.op("Relu", y)), run, relative_error)
    node = next(node for node in half.graph if node.op_type == "BatchNormalization")
    assert node.attributes.get_float("epsilon") == np.float32(1e-5)


@pytest.mark.parametrize("stored", ["initialiser", "node", "computed", "shared"])
def test_scales_of_resize_stay(stored: str, new_graph: Any, run: Any, relative_error: Any) -> None:
    graph = new_graph()
    y = conv(graph, graph.input("x", ("n", 4, 8, 8)))
    scales = np.array([1, 1, 1.5, 2.5], np.float32)
    match stored:
        case "node":
            scale = graph.op("Constant", value=ir.tensor(scales))
        case "computed":
            halves = graph.constant("halves", scales[2:])
            scale = graph.op("Concat", graph.constant("ones", scales[:2]), graph.op("Mul", halves, halves), axis=0)
        case _:
            scale = graph.constant("scales", scales)
    y = graph.op("Resize", y, None, scale, mode="nearest")
    if stored == "shared":
        y = graph.op("Mul", y, graph.op("ReduceMax", scale, keepdims=0))
    model = graph.model(graph.op("Relu", y), infer=False)  # types of values are not stored
    half = check(model, run, relative_error)
    node = next(node for node in half.graph if node.op_type == "Resize")
    kinds = types(half)
    assert kinds[str(node.inputs[2].name)] == ir.DataType.FLOAT
    assert kinds[str(node.inputs[0].name)] == ir.DataType.FLOAT16


def test_constant_nodes_of_every_kind(new_graph: Any, run: Any, relative_error: Any) -> None:
    graph = new_graph()
    y = conv(graph, graph.input("x", ("n", 4, 8, 8)))
    y = graph.op("Mul", y, graph.op("Constant", value_float=0.5))
    y = graph.op("Add", y, graph.op("Constant", value_floats=[1.5]))
    y = graph.op("Add", y, graph.op("Constant", value=ir.tensor(np.float32(0.25))))
    check(graph.model(y), run, relative_error)


def test_graph_with_casts(new_graph: Any, run: Any, relative_error: Any) -> None:
    graph = new_graph()
    x = graph.input("x", ("n", 4, 8, 8))
    count = graph.op("Cast", graph.op("Size", x), to=ir.DataType.FLOAT)
    positive = graph.op("Cast", graph.op("Greater", x, graph.constant("zero", np.zeros(1, np.float32))), to=1)
    y = graph.op("Div", conv(graph, graph.op("Mul", x, positive)), count)
    half = check(graph.model(graph.op("Relu", y)), run, relative_error)
    inner = [node for node in half.graph if node.op_type == "Cast"][1:-1]
    assert len(inner) == 2
    assert {node.attributes.get_int("to") for node in inner} == {ir.DataType.FLOAT16}


def test_operators_that_have_no_half(new_graph: Any, run: Any, relative_error: Any) -> None:
    graph = new_graph()
    x = graph.input("x", ("n", 4, 8, 8))
    limits = [graph.constant(f"c{i}", np.array(v, np.float32)) for i, v in enumerate((0, 8, 1))]
    y = graph.op("Add", conv(graph, x), graph.op("Range", *limits))
    half = check(graph.model(graph.op("Relu", y)), run, relative_error)
    assert types(half)[next(str(n.outputs[0].name) for n in half.graph if n.op_type == "Range")] == ir.DataType.FLOAT


@pytest.mark.parametrize("form", ["initialiser", "node"])
@pytest.mark.parametrize("value", [7e4, -7e4, np.inf, np.nan])
def test_weight_beyond_the_range_is_refused(form: str, value: float, new_graph: Any) -> None:
    graph = new_graph()
    weight = W.copy()
    weight[1, 2, 0, 0] = value
    stored = graph.constant("far", weight) if form == "initialiser" else graph.op("Constant", value=ir.tensor(weight))
    stored.name = "far"
    model = graph.model(graph.op("Conv", graph.input("x", ("n", 4, 8, 8)), stored))
    with pytest.raises(InputError, match=r"layer far: weight of magnitude .*, float16 ends at 65504; use --precision"):
        to_float16(model)


def test_weights_in_another_file(new_graph: Any, run: Any, relative_error: Any, tmp_path: Path) -> None:
    graph = new_graph()
    model = graph.model(conv(graph, graph.input("x", ("n", 4, 8, 8))))
    want = run(model, x=X)
    ir.save(model, tmp_path / "model.onnx", external_data="weights")
    half = to_float16(ir.load(tmp_path / "model.onnx"))
    assert relative_error(run(half, x=X), want.astype(np.float64)) < 5e-3

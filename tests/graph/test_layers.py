"""The layer table: geometry, padding modes, stems, what is left out and why, and the totals."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from trtkp.errors import InputError
from trtkp.graph.layers import conv_layers, conv_pads, is_conv2d, run_shapes, unusable_reason
from trtkp.graph.passes.batch_norm import fold_batch_norm
from trtkp.index.accounting import Matrix


def ones(*shape: int) -> np.ndarray[Any, Any]:
    return np.ones(shape, np.float32)


def test_geometry(new_graph: Any) -> None:
    graph = new_graph()
    x = graph.input("x", ("n", 8, 20, 30))
    first = graph.op(
        "Conv", x, graph.constant("a.weight", ones(12, 2, 3, 5)), graph.constant("a.bias", ones(12)),
        name="a", group=4, strides=[2, 3], pads=[1, 0, 2, 4], dilations=[2, 1],
    )  # fmt: skip
    second = graph.op("Conv", graph.op("Relu", first), graph.constant("b.weight", ones(7, 12, 1, 1)), name="b")
    table = conv_layers(graph.model(second), {"x": (2, 8, 20, 30)})
    a, b = table.layers
    assert (a.name, a.node, a.weight_shape, a.groups) == ("a.weight", "a", (12, 2, 3, 5), 4)
    assert (a.strides, a.pads, a.dilations) == ((2, 3), (1, 0, 2, 4), (2, 1))
    assert (a.input_size, a.output_size) == ((20, 30), (10, 10))
    assert (a.bias, a.stem, a.depthwise) == (True, True, False)
    assert (b.strides, b.pads, b.dilations, b.groups) == ((1, 1), (0, 0, 0, 0), (1, 1), 1)
    assert (b.input_size, b.output_size, b.bias, b.stem) == ((10, 10), (10, 10), False, False)
    assert (a.params, a.macs) == (12 * 30 + 12, 12 * 30 * 100)
    # totals are those of one sample
    assert table.macs == a.macs + b.macs
    assert table.params == a.params + b.params
    assert table.left_out == {}


@pytest.mark.parametrize(
    ("mode", "size"),
    [
        *product(("SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"), ((9, 12), (8, 7))),
        ("SAME_UPPER", (1, 2)),  # smaller than the kernel
        ("SAME_LOWER", (1, 2)),
    ],
)
@pytest.mark.parametrize("strides", [(1, 1), (2, 3), (1, 2)])
def test_auto_pad_is_what_onnxruntime_does(
    new_graph: Any, run: Any, oracle: Any, relative_error: Any, mode: str, strides: Any, size: Any
) -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(1, 2, *size)).astype(np.float32), rng.normal(size=(3, 2, 3, 2)).astype(np.float32)
    graph = new_graph()
    x_value = graph.input("x", (1, 2, *size))
    y = graph.op("Conv", x_value, graph.constant("w", weight), auto_pad=mode, strides=strides)
    model = graph.model(y)
    (layer,) = conv_layers(model, {"x": x.shape}).layers
    got = run(model, x=x)
    assert layer.output_size == got.shape[2:]
    want = oracle(x, weight, pads=layer.pads, strides=strides)
    assert relative_error(got, want) < 1e-6
    assert conv_pads(model.graph[0], size, (3, 2)) == layer.pads


@pytest.mark.parametrize(
    ("mode", "strides", "dilations", "pads"),
    [
        ("SAME_UPPER", (1, 1), (2, 3), (2, 1, 2, 2)),
        ("SAME_LOWER", (1, 1), (2, 3), (2, 2, 2, 1)),
        ("SAME_UPPER", (2, 3), (2, 3), (2, 0, 2, 1)),  # 9 and 12 become 5 and 4
        ("SAME_LOWER", (3, 4), (3, 1), (2, 0, 2, 0)),
        ("VALID", (1, 1), (2, 3), (0, 0, 0, 0)),
    ],
)
def test_auto_pad_with_dilations(mode: str, strides: Any, dilations: Any, pads: Any) -> None:
    node = ir.node("Conv", [], {"auto_pad": mode, "strides": strides, "dilations": dilations, "pads": [9] * 4})
    assert conv_pads(node, (9, 12), (3, 2)) == pads


def test_same_padding_of_a_dynamic_size(new_graph: Any) -> None:
    for strides, usable in (((1, 1), True), ((2, 1), False)):
        graph = new_graph()
        x = graph.input("x", ("n", 2, "height", 9))
        y = graph.op("Conv", x, graph.constant("w", ones(3, 2, 3, 3)), auto_pad="SAME_UPPER", strides=strides, name="c")
        model = graph.model(y)
        table = conv_layers(model, {"x": (1, 2, 8, 9)})
        assert is_conv2d(model.graph[0]) is usable
        assert table.left_out == ({} if usable else {"w": "its padding depends on the size of the input"})
        assert table.macs == 3 * 2 * 9 * (8 // strides[0]) * 9


def test_dynamic_size_with_resize(new_graph: Any) -> None:
    graph = new_graph()
    x = graph.input("x", ("n", 3, "height", "width"))
    small = graph.op("Conv", x, graph.constant("a", ones(4, 3, 3, 3)), strides=[2, 2], pads=[1, 1, 1, 1])
    # sizes by arithmetic on Shape, as exporters write an upsampling to another tensor's size
    shape = graph.op("Shape", x, start=2, end=4)
    batch_channels = graph.op("Shape", small, start=0, end=2)
    sizes = graph.op("Concat", batch_channels, shape, axis=0)
    large = graph.op("Resize", small, None, None, sizes, mode="nearest")
    y = graph.op("Conv", large, graph.constant("b", ones(2, 4, 1, 1)))
    table = conv_layers(graph.model(y), {"x": (2, 3, 50, 34)})
    assert [(layer.input_size, layer.output_size) for layer in table.layers] == [
        ((50, 34), (25, 17)),
        ((50, 34), (50, 34)),
    ]
    assert table.macs == 4 * 27 * 25 * 17 + 2 * 4 * 50 * 34


def test_stem_is_what_no_weighted_layer_precedes(new_graph: Any) -> None:
    graph = new_graph()
    x = graph.input("x", ("n", 3, 8, 8))
    other = graph.input("other", ("n", 3, 8, 8))
    weights = [graph.constant(f"w{i}", ones(3, 3, 1, 1)) for i in range(5)]
    scaled = graph.op("Relu", graph.op("Add", x, x))
    stem = graph.op("Conv", scaled, weights[0])
    also = graph.op("Conv", other, weights[1])
    mixed = graph.op("Conv", graph.op("Add", scaled, stem), weights[2])
    up = graph.op("ConvTranspose", x, graph.constant("t", ones(3, 3, 1, 1)))
    after_up = graph.op("Conv", graph.op("Relu", up), weights[3])
    flat = graph.op("MatMul", x, graph.constant("m", ones(8, 8)))
    after_product = graph.op("Conv", flat, weights[4])
    shapes = {"x": (1, 3, 8, 8), "other": (1, 3, 8, 8)}
    table = conv_layers(graph.model(also, mixed, after_up, after_product), shapes)
    assert {layer.name: layer.stem for layer in table.layers} == {
        "w0": True, "w1": True, "w2": False, "w3": False, "w4": False
    }  # fmt: skip


def test_what_is_left_out_and_why(new_graph: Any) -> None:
    graph = new_graph()
    x = graph.input("x", ("n", 3, 8, 8))
    line = graph.input("line", ("n", 3, 8))
    cube = graph.input("cube", ("n", 3, 4, 4, 4))
    outputs = [
        graph.op("ConvTranspose", x, graph.constant("up.weight", ones(3, 5, 2, 2)), strides=[2, 2]),
        graph.op("Conv", line, graph.constant("line.weight", ones(2, 3, 3))),
        graph.op("Conv", cube, graph.constant("cube.weight", ones(2, 3, 2, 2, 2))),
        graph.op("Conv", x, graph.op("Neg", graph.constant("raw", ones(2, 3, 3, 3))), name="computed"),
        graph.op("Conv", x, graph.constant("w", ones(2, 3, 1, 1)), graph.op("Neg", graph.constant("b", ones(2)))),
    ]
    model = graph.model(*outputs)
    table = conv_layers(model, {"x": (2, 3, 8, 8), "line": (2, 3, 8), "cube": (2, 3, 4, 4, 4)})
    assert table.layers == ()
    assert table.left_out == {
        "up.weight": "transposed convolution",
        "line.weight": "1-d convolution",
        "cube.weight": "3-d convolution",
        "computed": "its weight is computed, not stored",
        "w": "its bias is computed, not stored",
    }
    # every input pixel of the transposed one meets every weight; a computed weight costs as much as a stored one
    assert table.macs == 60 * 64 + 18 * 6 + 48 * 27 + 54 * 36 + 6 * 64
    assert table.params == 60 + 18 + 48 + 6
    assert unusable_reason(ir.node("Relu", [model.graph.inputs[0]])) == "not a convolution"
    foreign = ir.node("Conv", [model.graph.inputs[0]], domain="other")
    assert unusable_reason(foreign) == "not a convolution"


def test_products_and_parameters(new_graph: Any) -> None:
    graph = new_graph(18)
    x = graph.input("x", ("n", 5, 6))
    rows = graph.input("rows", ("n", 6))
    outputs = [
        graph.op("MatMul", x, graph.constant("m", ones(6, 4))),  # 5 x 6 x 4
        graph.op("Add", graph.op("MatMul", x, graph.constant("m2", ones(6, 3))), graph.constant("m2.bias", ones(3))),
        graph.op("MatMul", graph.constant("left", ones(7, 5)), x),  # 7 x 5 x 6
        graph.op("MatMul", x, graph.constant("vector", ones(6))),  # 5 x 6
        graph.op("Gemm", rows, graph.constant("g", ones(10, 6)), graph.constant("g.bias", ones(10)), transB=1),
        graph.op("Gemm", rows, graph.constant("h", ones(6, 11))),
        graph.op("MatMul", x, graph.op("Transpose", x, perm=[0, 2, 1])),  # two activations
        graph.op("PRelu", x, graph.constant("slope", ones(5, 1))),
        graph.op("LayerNormalization", x, graph.constant("ln", ones(6)), graph.constant("ln.bias", ones(6))),
        graph.op("Mul", x, graph.constant("factor", ones(6))),  # no parameter of any layer
    ]
    table = conv_layers(graph.model(*outputs), {"x": (3, 5, 6), "rows": (3, 6)})
    assert table.macs == 5 * 6 * 4 + 5 * 6 * 3 + 7 * 5 * 6 + 5 * 6 + 6 * 10 + 6 * 11
    assert table.params == 24 + 18 + 3 + 35 + 6 + 60 + 10 + 66 + 5 + 12


def test_weights_that_are_transposed_in_front_of_their_products(new_graph: Any) -> None:
    """As `torch.onnx` writes fully connected layers on [N, T, C]; one weight serves two of them."""
    graph = new_graph(18)
    x, weight = graph.input("x", ("n", 5, 6)), graph.constant("m", ones(6, 6))
    y = graph.op("MatMul", x, graph.op("Transpose", weight, perm=[1, 0]))
    y = graph.op("MatMul", y, graph.op("Transpose", weight))
    y = graph.op("MatMul", y, graph.op("Transpose", graph.constant("wide", ones(7, 6)), perm=[1, 0]))
    table = conv_layers(graph.model(graph.op("MatMul", y, graph.constant("head", ones(7, 2)))), {"x": (3, 5, 6)})
    assert table.params == 36 + 42 + 14
    assert table.macs == 2 * 5 * 36 + 5 * 42 + 5 * 14
    assert table.matrices == (Matrix("m", 36, 360), Matrix("wide", 42, 210), Matrix("head", 14, 70))
    assert table.matrices_kept({"wide": 40, "ghost": 1}) == {Matrix("wide", 42, 210): 40}


def test_batch_norm_counts_what_is_learnt_and_a_shared_weight_once(new_graph: Any) -> None:
    graph = new_graph()
    x, weight = graph.input("x", ("n", 3, 8, 8)), graph.constant("w", ones(3, 3, 3, 3))
    y = graph.op("Conv", x, weight, pads=[1, 1, 1, 1], name="one")
    y = graph.op("BatchNormalization", y, *(graph.constant(f"bn.{i}", ones(3)) for i in range(4)))
    y = graph.op("Conv", y, weight, name="two")
    model = graph.model(y)
    table = conv_layers(model, {"x": (1, 3, 8, 8)})
    assert [(layer.name, layer.node) for layer in table.layers] == [("w", "one"), ("w", "two")]
    assert table.params == 81 + 6
    assert table.macs == 81 * (64 + 36)
    fold_batch_norm(model)
    assert [layer.name for layer in conv_layers(model, {"x": (1, 3, 8, 8)}).layers] == ["w", "w"]


def test_nodes_without_a_name_and_weights_of_constant_nodes(new_graph: Any) -> None:
    graph = new_graph()
    weight = graph.op("Constant", value=ir.tensor(ones(2, 3, 3, 3)), output="stored")
    y = graph.op("Conv", graph.input("x", ("n", 3, 8, 8)), weight, name="")
    (layer,) = conv_layers(graph.model(y), {"x": (1, 3, 8, 8)}).layers
    assert (layer.name, layer.node) == ("stored", "stored")


def test_inputs_of_other_types_and_no_convolution(new_graph: Any) -> None:
    graph = new_graph()
    index = graph.input("index", ("n",), np.int64)
    y = graph.op("Gather", graph.constant("table", ones(5, 3)), index)
    table = conv_layers(graph.model(graph.op("MatMul", y, graph.constant("m", ones(3, 2)))), {"index": (4,)})
    assert (table.layers, table.params, table.macs) == ((), 15 + 6, 6)
    graph = new_graph()
    empty = conv_layers(graph.model(graph.op("Relu", graph.input("x", (2, 3)))), {"x": (2, 3)})
    assert (empty.layers, empty.params, empty.macs, empty.left_out) == ((), 0, 0, {})


def test_samples_are_counted_by_the_input_that_is_the_batch(new_graph: Any) -> None:
    def table(shapes: dict[str, Any], before: Any = None) -> Any:
        graph = new_graph()
        values = {name: graph.input(name, shape) for name, shape in shapes.items()}
        x = values["x"] if before is None else before(graph, values["x"])
        y = graph.op("Conv", x, graph.constant("w", ones(4, 3, 1, 1)))
        found = conv_layers(graph.model(y), shapes)
        (layer,) = found.layers
        assert layer.macs == found.macs  # nothing else is there
        return found.batch_input, layer.repeats, found.macs

    image = (2, 3, 8, 8)
    assert table({"x": image}) == ("x", 1, 12 * 64)
    # neither a number nor a vector is a batch of two
    assert table({"scale": (), "x": image}) == ("x", 1, 12 * 64)
    assert table({"weights": (5,), "x": image}) == ("x", 1, 12 * 64)
    # an image without a batch: three channels are not three samples
    unsqueeze = lambda graph, x: graph.op("Unsqueeze", x, graph.constant("axes", np.array([0])))  # noqa: E731
    assert table({"x": (3, 8, 8)}, unsqueeze) == (None, 1, 12 * 64)
    # five frames of each of two clips
    frames = lambda graph, x: graph.op("Reshape", x, graph.constant("shape", np.array([-1, 3, 8, 8])))  # noqa: E731
    assert table({"x": (2, 5, 3, 8, 8)}, frames) == ("x", 5, 5 * 12 * 64)


def test_weight_of_two_numbers_of_groups(new_graph: Any) -> None:
    graph = new_graph()
    x = graph.input("x", ("n", 4, 8, 8))
    weight = graph.constant("w", ones(4, 2, 3, 3))
    grouped = graph.op("Conv", x, weight, group=2)
    starts, ends, axes = (graph.constant(name, np.array([value])) for name, value in (("s", 0), ("e", 2), ("a", 1)))
    half = graph.op("Slice", x, starts, ends, axes)
    table = conv_layers(graph.model(grouped, graph.op("Conv", half, weight)), {"x": (1, 4, 8, 8)})
    assert table.layers == ()
    assert table.left_out == {"w": "its weight serves convolutions of different groups"}


def test_convolutions_in_the_bodies_of_control_flow() -> None:
    text = """
        <ir_version: 8, opset_import: ["": 18]>
        net (float[1, 3, 8, 8] x, bool flag) => (float[1, 3, 8, 8] y)
        <float[3, 3, 1, 1] outer, float[3, 3, 1, 1] inner>
        {
            a = Conv (x, outer)
            y = If (flag) <
                then_branch = yes () => (float[1, 3, 8, 8] t) { t = Conv (a, inner) },
                else_branch = no () => (float[1, 3, 8, 8] f) { f = Identity (a) }
            >
        }"""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(numpy_helper.from_array(ones(3, 3, 1, 1), name) for name in ("outer", "inner"))
    table = conv_layers(ir.from_proto(proto), {"x": (1, 3, 8, 8), "flag": ()})
    assert [layer.name for layer in table.layers] == ["outer"]
    assert table.left_out == {"inner": "inside the body of If or Loop"}
    assert table.macs == 9 * 64


def test_shapes_that_the_model_does_not_take(new_graph: Any) -> None:
    graph = new_graph()
    x = graph.input("x", ("n", 3, "height", "width"))
    model = graph.model(graph.op("Conv", x, graph.constant("w", ones(2, 3, 5, 5))))
    with pytest.raises(InputError, match="the graph does not run at x 1x3x4x4"):
        conv_layers(model, {"x": (1, 3, 4, 4)})
    with pytest.raises(InputError, match="layer x: no shape for this input"):
        conv_layers(model, {})
    before = ir.to_proto(model).SerializeToString()
    assert run_shapes(model, {"x": (1, 3, 6, 7)}, ["x", "value_0", "ghost"]) == {
        "x": (1, 3, 6, 7),
        "value_0": (1, 2, 2, 3),
    }
    assert ir.to_proto(model).SerializeToString() == before


def test_weights_in_another_file(new_graph: Any, tmp_path: Path) -> None:
    graph = new_graph()
    y = graph.op("Conv", graph.input("x", ("n", 3, 8, 8)), graph.constant("w", ones(2, 3, 5, 5)))
    ir.save(graph.model(y), tmp_path / "model.onnx", external_data="weights")
    table = conv_layers(ir.load(tmp_path / "model.onnx"), {"x": (1, 3, 8, 8)})
    assert (table.params, table.macs) == (150, 150 * 16)

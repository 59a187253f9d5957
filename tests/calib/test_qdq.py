"""Q/DQ pairs: bit-exact weights, exact zeros, and graphs that compute what the scales say."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trtkp.bundle.calibration import scale_of
from trtkp.calib.placement import find_sites, place
from trtkp.calib.qdq import insert, quantise_weight, weight_scales
from trtkp.errors import InputError
from trtkp.graph.passes.precision import to_float16

Array = np.ndarray[Any, Any]
weights = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=4, max_side=5),
    elements=st.floats(-1e3, 1e3, width=32, allow_subnormal=False).map(lambda v: v if abs(v) > 1e-6 else 0.0),
)


@given(weights, st.integers(0, 1))
def test_weights_are_what_an_independent_computation_says(weight: Array, axis: int) -> None:
    scales = weight_scales(weight, axis)
    levels = quantise_weight(weight, scales, axis)
    assert levels.dtype == np.int8
    for f, (row, scale) in enumerate(zip(np.moveaxis(weight, axis, 0), scales, strict=True)):
        largest = max((abs(float(v)) for v in row.ravel()), default=0.0)
        assert scale == (np.float32(largest) / np.float32(127) if largest else np.float32(1))
        # round half to even, in exact arithmetic of the float32 quotient
        want = [int(np.clip(round(float(np.float32(v) / scale)), -127, 127)) for v in row.ravel()]
        assert np.moveaxis(levels, axis, 0)[f].ravel().tolist() == want
    assert not levels[weight == 0].any()
    assert np.abs(levels.astype(int)).max(initial=0) <= 127


@pytest.mark.parametrize("axis", [0, 1])
def test_weights_bit_for_bit_as_the_operator_quantises(axis: int, new_graph: Any, run: Any) -> None:
    weight = np.random.default_rng(0).standard_normal((16, 16, 3, 3)).astype(np.float32)
    scales = weight_scales(weight, axis)
    graph = new_graph()
    w = graph.input("w", weight.shape)
    zero = graph.constant("z", np.zeros(16, np.int8))
    quantised = graph.op("QuantizeLinear", w, graph.constant("s", scales), zero, axis=axis)
    model = graph.model(quantised)
    quantised.dtype = ir.DataType.INT8
    np.testing.assert_array_equal(run(model, w=weight), quantise_weight(weight, scales, axis))


def net(new_graph: Any, *, relu: bool = True) -> tuple[ir.Model, Array, Array]:
    """A convolution with pruned weights, and its weight and bias."""
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((6, 4, 3, 3)).astype(np.float32)
    weight[:, :, 0] = 0  # a pruned row of taps
    weight[2] = 0  # a filter that keeps nothing
    bias = rng.standard_normal(6).astype(np.float32)
    graph = new_graph()
    x = graph.input("x", ("n", 4, 8, 8))
    y = graph.op("Conv", x, graph.constant("w", weight), graph.constant("b", bias), name="conv", pads=[1] * 4)
    return graph.model(graph.op("Relu", y, output="y") if relu else y), weight, bias


def fake(x: Array, scale: float) -> Array:
    return np.clip(np.rint(x / np.float32(scale)), -128, 127) * np.float64(scale)


def test_the_graph_computes_with_rounded_inputs_and_weights(new_graph: Any, run: Any, oracle: Any) -> None:
    model, weight, bias = net(new_graph)
    x = np.random.default_rng(2).standard_normal((2, 4, 8, 8)).astype(np.float32)
    quantised = insert(model, place(model, "explicit"), {"x": 2.0})  # clips
    onnx.checker.check_model(ir.to_proto(quantised), full_check=True)
    scales = weight_scales(weight, 0)
    rounded = quantise_weight(weight, scales, 0).astype(np.float64) * scales.astype(np.float64)[:, None, None, None]
    want = oracle(fake(x, scale_of(2.0)), rounded, bias=bias, activation="Relu", pads=(1, 1, 1, 1))
    np.testing.assert_allclose(run(quantised, x=x, optimise=False), want, rtol=1e-4, atol=1e-5)
    stored = next(v for name, v in quantised.graph.initializers.items() if name == "w.int8")
    levels = stored.const_value.numpy()
    assert not levels[weight == 0].any()
    assert "w" not in quantised.graph.initializers


def test_the_form_of_onnxruntime_is_one_integer_kernel(new_graph: Any, tmp_path: Any) -> None:
    import onnxruntime

    graph = new_graph()
    rng = np.random.default_rng(1)
    value = graph.input("x", ("n", 8, 8, 8))
    for i in range(3):
        weight = graph.constant(f"w{i}", rng.standard_normal((8, 8, 3, 3)).astype(np.float32) / 8)
        value = graph.op("Conv", value, weight, graph.constant(f"b{i}", np.zeros(8, np.float32)), pads=[1] * 4)
        value = graph.op("Relu", value, output=f"r{i}")
    model = graph.model(graph.op("GlobalAveragePool", value, output="y"))
    quantised = insert(model, place(model, "onnxruntime"), dict.fromkeys(["x", "r0", "r1", "r2"], 3.0))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(ir.to_proto(quantised).SerializeToString(), options)
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert kinds.count("QLinearConv") == 3
    assert not {"Conv", "FusedConv", "Relu"} & set(kinds)


def test_mixed_with_half_precision(new_graph: Any, run: Any) -> None:
    model, _, _ = net(new_graph)
    x = np.random.default_rng(2).standard_normal((2, 4, 8, 8)).astype(np.float32)
    placement = place(model, "explicit")
    plain = run(insert(model, placement, {"x": 4.0}), x=x, optimise=False)
    half = insert(to_float16(model), placement, {"x": 4.0})
    onnx.checker.check_model(ir.to_proto(half), full_check=True)
    assert half.graph.opset_imports[""] >= 21
    scales = [v.const_value.numpy() for name, v in half.graph.initializers.items() if name.endswith(".scale")]
    assert len(scales) == 2
    for scale in scales:
        assert scale.dtype == np.float16
        assert (scale > 0).all()
    found = run(half, x=x, optimise=False)
    assert np.linalg.norm(found - plain) / np.linalg.norm(plain) < 2e-2


def test_scales_too_small_for_half_precision_stay_positive(new_graph: Any) -> None:
    graph = new_graph()
    x = graph.input("x", ("n", 2, 4, 4))
    weight = np.full((2, 2, 1, 1), 1e-7, np.float32)
    weight[1] = 0.5
    model = graph.model(graph.op("Conv", x, graph.constant("w", weight), name="conv", output="y"))
    half = insert(to_float16(model), place(model, "explicit"), {"x": 1.0})
    scale = half.graph.initializers["w.scale"].const_value.numpy()
    assert (scale > 0).all()
    assert (scale.astype(np.float32) * 127 >= np.abs(weight).max(axis=(1, 2, 3)) * 0.999).all()


def test_fp8(new_graph: Any, run: Any, oracle: Any) -> None:
    model, weight, bias = net(new_graph)
    x = np.random.default_rng(2).standard_normal((2, 4, 8, 8)).astype(np.float32)
    quantised = insert(model, place(model, "explicit"), {"x": 4.0}, "fp8")
    proto = ir.to_proto(quantised)
    onnx.checker.check_model(proto, full_check=True)
    types = {init.data_type for init in proto.graph.initializer}
    assert onnx.TensorProto.FLOAT8E4M3FN in types

    def rounded(array: Array, scale: Array) -> Array:
        scaled = np.clip(array.astype(np.float32) / scale, -448, 448)
        return scaled.astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * scale

    scales = np.abs(weight).max(axis=(1, 2, 3), keepdims=True) / np.float32(448)
    kept = rounded(weight, np.where(scales > 0, scales, 1))
    assert not kept[weight == 0].any()
    want = oracle(rounded(x, np.float32(4) / np.float32(448)), kept, bias=bias, activation="Relu", pads=(1, 1, 1, 1))
    np.testing.assert_allclose(run(quantised, x=x, optimise=False), want, rtol=1e-4, atol=1e-4)


def test_the_runner_computes_fp8_as_written(new_graph: Any) -> None:
    """ONNX Runtime's own rewrite drops a ReLU before an FP8 quantiser; ours must not."""
    from trtkp.engine.onnxruntime import OrtRunner

    graph = new_graph()
    rng = np.random.default_rng(1)
    x = graph.input("x", ("n", 4, 8, 8))
    value = x
    for i in range(2):
        weight = graph.constant(f"w{i}", rng.standard_normal((4, 4, 3, 3)).astype(np.float32))
        value = graph.op("Relu", graph.op("Conv", value, weight, pads=[1] * 4), output=f"r{i}")
    model = graph.model(value)
    quantised = insert(model, place(model, "explicit"), {"x": 4.0, "r0": 40.0}, "fp8")
    feed = {"x": rng.standard_normal((1, 4, 8, 8)).astype(np.float32)}
    with OrtRunner(ir.to_proto(model)) as floating, OrtRunner(ir.to_proto(quantised), fuse_qdq=False) as runner:
        want, found = floating.run(feed)["r1"], runner.run(feed)["r1"]
    assert np.linalg.norm(found - want) / np.linalg.norm(want) < 0.1


def test_a_shared_weight_is_stored_once(new_graph: Any) -> None:
    graph = new_graph()
    x = graph.input("x", ("n", 4, 8, 8))
    weight = graph.constant("w", np.ones((4, 4, 1, 1), np.float32))
    first = graph.op("Conv", x, weight, output="a")
    model = graph.model(graph.op("Conv", first, weight, output="y"))
    quantised = insert(model, place(model, "explicit"), {"x": 1.0, "a": 1.0})
    assert [name for name in quantised.graph.initializers if name.endswith(".int8")] == ["w.int8"]
    assert {site.layer for site in find_sites(model)} == {"w"}


def test_a_tensor_without_a_range(new_graph: Any) -> None:
    model, _, _ = net(new_graph)
    with pytest.raises(InputError, match="layer x: the calibration has no range"):
        insert(model, place(model, "explicit"), {})

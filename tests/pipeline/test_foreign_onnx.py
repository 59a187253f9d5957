"""ONNX files of other tools."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import trtkp
from tests.pipeline.whole import assert_verified, assert_whole, build
from trtkp.errors import InputError


def test_foreign_onnx_warns_of_folded_statistics(classifier: Path, tmp_path: Path) -> None:
    warning = "batch normalisation seems folded into the weights"
    scored = build(classifier, tmp_path / "kep")
    assert_whole(scored)
    assert_verified(scored)
    assert any(warning in line for line in scored.manifest.warnings)
    assert not any(warning in line for line in build(classifier, tmp_path / "none", "none").manifest.warnings)


def with_zeros(source: Path, target: Path) -> Path:
    """w1 keeps the left column of every kernel, w2 every other channel."""
    model = onnx.load(source)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        if tensor.name == "w1":
            array[..., 1:] = 0
        if tensor.name == "w2":
            array[:, ::2] = 0
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(model, target)
    return target


def test_foreign_onnx_with_zeros(classifier: Path, tmp_path: Path) -> None:
    path = with_zeros(classifier, tmp_path / "zeros.onnx")
    bundle = build(path, tmp_path / "b", "from-zeros")
    assert_whole(bundle)
    assert_verified(bundle)
    kinds = {layer.name: (layer.kind, layer.density, layer.op) for layer in bundle.manifest.layers}
    assert kinds == {
        "w0": ("dense", 1.0, None),
        "w1": ("stripe", pytest.approx(1 / 3), "StripeConvRelu"),
        "w2": ("kernel", 0.5, "KernelIndexConvRelu"),
    }
    assert {layer.name: layer.reason for layer in bundle.manifest.layers}["w0"] == "the method removes nothing from it"
    assert not any("batch normalisation" in line for line in bundle.manifest.warnings)


def test_anonymous_initialisers_and_constant_nodes(classifier: Path, tmp_path: Path) -> None:
    """Weights called ``onnx::Conv_12``, nodes without names, and a weight in a Constant node."""
    model = onnx.load(with_zeros(classifier, tmp_path / "zeros.onnx"))
    new = {tensor.name: f"onnx::Conv_{i + 10}" for i, tensor in enumerate(model.graph.initializer)}
    for tensor in model.graph.initializer:
        tensor.name = new[tensor.name]
    for node in model.graph.node:
        node.name = ""
        for i, name in enumerate(node.input):
            node.input[i] = new.get(name, name)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == new["w2"])
    constant = helper.make_node("Constant", [], [weight.name], value=weight)
    model.graph.node.insert(0, constant)
    model.graph.initializer.remove(weight)
    onnx.save(model, tmp_path / "anonymous.onnx")
    bundle = build(tmp_path / "anonymous.onnx", tmp_path / "b", "from-zeros")
    assert_whole(bundle)
    assert_verified(bundle)
    assert [layer.kind for layer in bundle.manifest.layers] == ["dense", "stripe", "kernel"]


def test_half_precision_source_needs_fp16(classifier: Path, tmp_path: Path) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(classifier)), tmp_path / "half.onnx")
    with pytest.raises(InputError, match=r"half\.onnx: the model is in half precision; use --precision fp16"):
        build(tmp_path / "half.onnx", tmp_path / "b")
    bundle = build(tmp_path / "half.onnx", tmp_path / "b", precision="fp16")
    assert_whole(bundle)
    assert_verified(bundle)


def test_sizes_without_names(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal(shape).astype(np.float32) for shape in ((8, 3, 3, 3), (8, 8, 3, 3))]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "a"], ["c"], auto_pad="SAME_UPPER", strides=[2, 2]),
            helper.make_node("Conv", ["c", "b"], ["y"], pads=[0, 1, 2, 1]),
        ],
        "net",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [None, 3, None, None])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None, 8, None, None])],
        [numpy_helper.from_array(weight, name) for name, weight in zip("ab", weights, strict=True)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "n.onnx")
    with pytest.raises(InputError, match=r"n\.onnx: layer x .*dimension 2 .* its range is not known"):
        build(tmp_path / "n.onnx", tmp_path / "b")
    bundle = build(
        tmp_path / "n.onnx", tmp_path / "b", share="per-layer", lowering="rectangles",
        min=["1x3x15x15"], opt=["2x3x40x33"], max=["4x3x64x64"],
    )  # fmt: skip
    assert trtkp.verify(bundle).ok

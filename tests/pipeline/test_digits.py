"""The digits net: every share, precision and backend; dense, from zeros, with 2:4 inside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import trtkp
from examples.nets.digits import DigitsCnn
from tests.models import settled
from tests.pipeline.whole import RTX, assert_verified, assert_whole, build, needs_rtx, nodes_of
from trtkp.pipeline.options import BuildOptions

KINDS = {"none": "pattern", "per-channel": "pattern", "per-filter": "stripe", "per-layer": "stripe"}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "fp16 io"])
@pytest.mark.parametrize("share", KINDS)
def test_every_share_and_precision_in_onnxruntime(
    digits: Path, digits_onnx: Path, tmp_path: Path, share: str, precision: str
) -> None:
    source = digits if precision == "fp32" else digits_onnx
    bundle = build(source, tmp_path / "b", share=share, precision=precision[:4], keep_io=not precision.endswith("io"))
    assert_whole(bundle)
    assert_verified(bundle)
    layers = {layer.name: layer for layer in bundle.manifest.layers}
    assert layers["stem.0.weight"].reason == "stem"
    pruned = [layer for name, layer in layers.items() if name != "stem.0.weight"]
    assert len(pruned) == 4
    for layer in pruned:
        assert layer.kind == KINDS[share]
        assert layer.density == pytest.approx(4 / 9)
        assert layer.filter_groups == 1 if share in ("per-channel", "per-layer") else layer.filter_groups > 1
    bodies = {"stripe": "StripeConv", "pattern": "PatternConv"}
    ops = [layer.op.removeprefix(bodies[layer.kind]) for layer in pruned if layer.op]
    assert ops == ["Relu", "Relu", "AddRelu", "Relu"]  # the whole epilogue is fused
    dtype = "float16" if precision == "fp16 io" else "float32"
    with bundle.open() as runner:
        assert runner.inputs[0].dtype == runner.outputs[0].dtype == dtype
    wanted = {"n": 4, "ratio": None, "allocation": "uniform", "share": share}
    assert bundle.manifest.settings.items() >= wanted.items()


@needs_rtx
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("share", ["none", "per-layer"])
def test_tensorrt_rtx(digits_onnx: Path, tmp_path: Path, share: str, precision: str) -> None:
    bundle = build(digits_onnx, tmp_path / "b", share=share, precision=precision, **RTX)
    assert_whole(bundle)
    assert_verified(bundle)
    assert bundle.manifest.targets == ["sm86"]
    assert bundle.manifest.plan.status == "unmeasured"
    dense = build(digits_onnx, tmp_path / "d", "none", precision=precision, **RTX)
    assert bundle.file("model.engine").stat().st_size <= 1.01 * dense.file("model.engine").stat().st_size


def test_dense_build(digits: Path, tmp_path: Path) -> None:
    bundle = build(digits, tmp_path / "b", "none")
    assert_whole(bundle)
    assert_verified(bundle)
    assert bundle.index_sets == {}
    assert {layer.reason for layer in bundle.manifest.layers} == {"method none"}
    totals = bundle.manifest.totals
    assert (totals.retained_params, totals.retained_macs) == (totals.dense_params, totals.dense_macs)
    net = DigitsCnn(16)
    assert totals.dense_params == sum(p.numel() for p in net.parameters())
    assert bundle.manifest.warnings == []


def test_same_build_twice_is_equal_byte_for_byte(digits: Path, tmp_path: Path) -> None:
    once, again = (build(digits, tmp_path / name, share="per-layer", lowering="rectangles") for name in "ab")
    for name in ("index_sets.safetensors", "model.onnx", "engine.onnx"):
        assert once.file(name).read_bytes() == again.file(name).read_bytes()
    assert once.manifest.plan.status == "forced"
    assert {layer.lowering for layer in once.manifest.layers} == {None, "rectangles"}


def test_zeros_that_are_there(digits: Path, tmp_path: Path) -> None:
    """Prune a net by hand, save it, and build from its zeros: the index sets are those that made them."""
    pruned = build(digits, tmp_path / "kep", share="per-filter", lowering="dense")
    torch.manual_seed(0)
    net = settled(DigitsCnn(16), (1, 16, 16))
    with torch.no_grad():
        for name, index in pruned.index_sets.items():
            net.get_parameter(name).mul_(torch.from_numpy(index.mask()))
    torch.save(net.state_dict(), tmp_path / "zeros.pt")
    # a state dict this time; of another module path the factory is the same
    found = build(
        tmp_path / "zeros.pt", tmp_path / "zeros", "from-zeros",
        arch="tests.pipeline.test_digits:narrow_digits", input_shape=("1x1x16x16",), lowering="dense",
    )  # fmt: skip
    assert_whole(found)
    assert_verified(found)
    assert {layer.name for layer in found.manifest.layers if layer.kind == "dense"} == {"stem.0.weight"}
    masks = {name: index.mask() for name, index in found.index_sets.items()}
    assert masks.keys() == pruned.index_sets.keys()
    for name, index in pruned.index_sets.items():
        np.testing.assert_array_equal(masks[name], index.mask())
    assert found.file("index_sets.safetensors").read_bytes() == pruned.file("index_sets.safetensors").read_bytes()


def narrow_digits() -> nn.Module:
    return DigitsCnn(16)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_two_four_inside_lists(precision: str, digits: Path, tmp_path: Path) -> None:
    """From --nm to the operators, the counts and a whole bundle."""
    options = BuildOptions(precision=precision)
    bundle = trtkp.build(
        digits, tmp_path / "b", method="vskp", options=options, ratio=0.75, allocation="uniform", filter_group=16,
        nm="2:4",
    )  # fmt: skip
    assert_whole(bundle)
    pruned = [layer for layer in bundle.manifest.layers if layer.kind != "dense"]
    assert pruned
    for layer in pruned:
        index = bundle.index_sets[layer.name]
        assert index.nm_mask is not None
        assert layer.retained_params < layer.dense_params
        assert index.retained <= 0.3 * np.prod(index.shape)
    ops = {node.op_type for node in nodes_of(bundle, "model.onnx") if node.domain == "trtkp"}
    assert ops
    assert all(op.startswith("KernelIndexConv24") for op in ops)
    assert bundle.manifest.settings["nm"] == "2:4"
    assert_verified(bundle)

"""Families of nets, in both backends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from examples.nets.dense import DenseNetLike
from examples.nets.mobile import mobile_net_like
from tests.models import as_onnx, save_program
from tests.pipeline.whole import RTX, assert_graphs_agree, assert_verified, assert_whole, build, needs_rtx, nodes_of
from trtkp.bundle import Bundle


def build_family(net: nn.Module, shape: tuple[int, ...], tmp_path: Path, **options: Any) -> Bundle:
    """In fp32 for onnxruntime, and in fp16 for TensorRT-RTX."""
    path = save_program(net, tmp_path / "net.pt2", shape)
    share = options.pop("share", "per-layer")
    bundle = build(path, tmp_path / "ort", share=share, opt=(f"1x{'x'.join(map(str, shape))}",), **options)
    assert_whole(bundle)
    assert_verified(bundle)
    path = as_onnx(path)
    half = build(path, tmp_path / "rtx", share=share, precision="fp16", **options, **RTX)
    assert_whole(half)
    assert_graphs_agree(half)
    dense = build(path, tmp_path / "dense", "none", precision="fp16", **RTX)
    assert half.file("model.engine").stat().st_size <= 1.01 * dense.file("model.engine").stat().st_size
    assert {layer.name: layer.op for layer in half.manifest.layers} == {
        layer.name: layer.op for layer in bundle.manifest.layers
    }
    return bundle


@needs_rtx
@pytest.mark.slow
def test_mobile_net(tmp_path: Path) -> None:
    torch.manual_seed(0)
    bundle = build_family(mobile_net_like(), (3, 96, 96), tmp_path)
    layers = {layer.name.removesuffix(".weight"): layer for layer in bundle.manifest.layers}
    assert layers["stem.0"].reason == "stem"
    assert layers["blocks.0.depthwise.0"].reason == "depthwise"
    assert layers["blocks.0.expand.0"].reason == "1x1 kernel: a plane of one element has nothing to drop"
    assert (layers["blocks.3.grouped.0"].groups, layers["blocks.3.grouped.0"].op) == (4, "StripeConvSilu")
    assert layers["blocks.3.dense.0"].op == "StripeConvAddSilu"
    assert layers["blocks.6.grouped.0"].op == "StripeConvHardSwish"
    assert layers["blocks.6.dense.0"].op == "StripeConvAddHardSwish"
    assert {layer.kind for name, layer in layers.items() if "blocks.3." in name} == {"stripe"}


@needs_rtx
@pytest.mark.slow
def test_dense_net(tmp_path: Path) -> None:
    torch.manual_seed(0)
    bundle = build_family(DenseNetLike(growth=16, depths=(2, 2)), (3, 32, 32), tmp_path, share="per-channel")
    pruned = [layer for layer in bundle.manifest.layers if layer.kind != "dense"]
    assert [layer.op for layer in pruned] == ["PatternConv"] * 4  # a Concat follows, nothing to fuse
    assert "Concat" in {node.op_type for node in nodes_of(bundle, "engine.onnx")}

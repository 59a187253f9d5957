"""Whole nets of ``examples/nets`` in INT8 for TensorRT-RTX: built, and their graphs verified."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import trtkp
from examples.nets import settle_batch_norm
from examples.nets.mobile import mobile_net_like
from examples.nets.resnet import Bottleneck, resnet50
from examples.nets.unet import unet
from tests.models import save_program
from trtkp.machine.packages import importable
from trtkp.pipeline.options import BuildOptions


def calm_resnet50() -> nn.Module:
    """A ResNet-50 whose blocks add little to their input, as those of trained nets do."""
    net = resnet50()
    for block in net.modules():
        if isinstance(block, Bottleneck):
            nn.init.constant_(block.bn3.weight, 0.2)
    return net


pytestmark = pytest.mark.skipif(not importable("tensorrt_rtx"), reason="package tensorrt_rtx is not installed")


def test_random_weights_at_full_strength_are_chaotic() -> None:
    """Why a calm net: what 1 % of noise on the image does to the output, rounding to 8 bits does too."""

    def change(net: nn.Module) -> float:
        x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            y, noisy = net(x), net(x + 0.01 * noise)
        return float((noisy - y).norm() / y.norm())

    torch.manual_seed(0)
    calm, chaotic = (settle_batch_norm(factory(), (3, 64, 64)) for factory in (calm_resnet50, resnet50))
    assert change(calm) < 0.05
    assert change(chaotic) > 0.2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("factory", "shape", "adds"),
    [(calm_resnet50, (3, 64, 64), 16), (mobile_net_like, (3, 48, 48), 1), (unet, (3, 32, 32), 0)],
    ids=["resnet50", "mobile_net_like", "unet"],
)
def test_rtx_builds_the_int8_graph(
    factory: Callable[[], nn.Module], shape: tuple[int, int, int], adds: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    source = save_program(factory(), tmp_path / "net.pt2", shape)
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32))
    options = BuildOptions(backend="tensorrt-rtx", opt=["2x" + "x".join(map(str, shape))])
    # weights are random and decisions mean nothing, so every layer is quantised
    calibration = trtkp.CalibrationOptions(max_drop=None if factory is unet else 100)
    made = trtkp.calibrate(source, tmp_path / "b", data=tmp_path / "x.npz", options=options, calibration=calibration)
    report = trtkp.verify(made)
    assert {check.artefact: check.status for check in report.checks}["engine.onnx"] == "verified"
    assert made.manifest.files["model.engine"].bytes > 0
    record = made.manifest.quantisation
    assert record is not None
    assert {choice.precision for choice in record.layers.values()} == {"int8"}
    graph = onnx.load(made.file("engine.onnx")).graph
    producers = {output: node for node in graph.node for output in node.output}
    quantised = [
        node
        for node in graph.node
        if node.op_type == "Add"
        and any(name in producers and producers[name].op_type == "DequantizeLinear" for name in node.input)
    ]
    assert len(quantised) >= adds

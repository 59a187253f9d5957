"""Batches, image sizes, and what is counted of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import trtkp
from examples.nets.digits import DigitsCnn
from examples.nets.unet import UNet
from tests.models import as_onnx, save_program
from tests.pipeline.whole import RTX, assert_graphs_agree, assert_verified, assert_whole, build, needs_rtx, nodes_of
from trtkp.errors import InputError


@pytest.mark.parametrize("batch", [1, 4])
def test_fixed_batch(tmp_path: Path, batch: int) -> None:
    torch.manual_seed(0)
    path = save_program(DigitsCnn(16), tmp_path / "fixed.pt2", (1, 16, 16), batch=(batch, batch))
    bundle = build(path, tmp_path / "b", share="per-layer")
    assert_whole(bundle)
    assert_verified(bundle)
    shape = [batch, 1, 16, 16]
    assert bundle.manifest.profile == {"x": {"min": shape, "opt": shape, "max": shape}}
    # costs are per sample whatever the batch
    assert bundle.manifest.totals.dense_macs == 2_691_712
    with pytest.raises(InputError, match="does not fit the input"):
        build(path, tmp_path / "c", opt=("2x1x16x16",))


def test_batch_range_of_the_export(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = save_program(DigitsCnn(16), tmp_path / "range.pt2", (1, 16, 16), batch=(4, 12))
    bundle = build(path, tmp_path / "b")
    assert_verified(bundle)
    assert {key: shape[0] for key, shape in bundle.manifest.profile["x"].items()} == {"min": 4, "opt": 8, "max": 12}
    assert bundle.manifest.totals.dense_macs == 2_691_712
    assert [result.batch for result in trtkp.bench([bundle], runs=1, warmup=0)] == [8]
    with pytest.raises(InputError, match=r"outside 4\.\.12"):
        build(path, tmp_path / "c", min=("2x1x16x16",))


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return save_program(UNet(8), tmp_path_factory.mktemp("unet") / "unet.pt2", (3, 32, 32), size_step=8)


@needs_rtx
@pytest.mark.slow
def test_dynamic_height_and_width(unet: Path, tmp_path: Path) -> None:
    shapes = {"min": ("1x3x16x24",), "opt": ("2x3x32x40",), "max": ("4x3x64x48",)}
    bundle = build(unet, tmp_path / "b", share="per-layer", **shapes)
    assert_whole(bundle)
    assert_verified(bundle)
    assert bundle.manifest.profile["x"] == {"min": [1, 3, 16, 24], "opt": [2, 3, 32, 40], "max": [4, 3, 64, 48]}
    assert bundle.manifest.layers[0].output_size == (32, 40)
    assert [record for record in bundle.manifest.inputs[0].shape if isinstance(record, int)] == [3]
    with bundle.open() as runner:
        assert next(iter(runner.run({"x": np.zeros((3, 3, 64, 16), np.float32)}).values())).shape == (3, 2, 64, 16)
    engine = build(as_onnx(unet), tmp_path / "e", share="per-layer", precision="fp16", **shapes, **RTX)
    assert_whole(engine)
    assert_graphs_agree(engine)
    grown = [reason for name, reason in bundle.manifest.left_out.items() if "grow" in name]
    assert grown == ["transposed convolution"] * 3
    ops = {node.op_type for node in nodes_of(bundle, "model.onnx") if node.domain}
    assert ops == {"StripeConvLeakyRelu"}


class Stack(nn.Module):
    """Two convolutions over whatever ``before`` makes of the input."""

    def __init__(self, before: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.before = before
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(self.before(x))))


@pytest.mark.parametrize(
    ("shape", "before", "images"),
    [
        pytest.param((3, 16, 16), lambda x: x[None], 1, id="no batch"),
        pytest.param((2, 5, 3, 16, 16), lambda x: x.flatten(0, 1), 5, id="clips"),
    ],
)
def test_macs_of_a_sample(tmp_path: Path, shape: tuple[int, ...], before: Any, images: int) -> None:
    """Layers and totals count the same samples, so that what is left is never less than nothing."""
    program = torch.export.export(Stack(before).eval(), (torch.zeros(shape),))
    torch.export.save(program, tmp_path / "net.pt2")
    bundle = build(tmp_path / "net.pt2", tmp_path / "b", share="per-layer", lowering="box")
    totals, (first, second) = bundle.manifest.totals, bundle.manifest.layers
    assert (first.dense_macs, second.dense_macs) == (images * 256 * 27 * 8, images * 256 * 72 * 8)
    assert totals.dense_macs == first.dense_macs + second.dense_macs
    assert totals.retained_macs == first.dense_macs + second.dense_macs * 4 // 9
    assert trtkp.verify(bundle).ok


def test_number_before_the_images(tmp_path: Path) -> None:
    class Scaled(Stack):
        def forward(self, scale: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x) * scale

    batch = torch.export.Dim("batch", max=64)
    program = torch.export.export(
        Scaled(lambda x: x).eval(), (torch.tensor(2.0), torch.zeros(2, 3, 16, 16)), dynamic_shapes=(None, {0: batch})
    )
    torch.export.save(program, tmp_path / "net.pt2")
    bundle = build(tmp_path / "net.pt2", tmp_path / "b", share="per-layer")
    assert bundle.manifest.totals.dense_macs == 256 * (27 + 72) * 8
    assert trtkp.verify(bundle).ok
    assert trtkp.bench([bundle], warmup=0, runs=1)[0].batch == 8

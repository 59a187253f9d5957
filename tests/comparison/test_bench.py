"""``bench``: every bundle in turn, at one batch, within its profile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import trtkp
from tests.models import write_classifier
from trtkp.bundle import Bundle
from trtkp.engine import NotRunnableError
from trtkp.errors import InputError
from trtkp.machine.gpu import find_gpus
from trtkp.machine.packages import importable
from trtkp.pipeline.options import BuildOptions


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles ``dense`` and ``half`` of one net, with profiles of 1 / 4 / 6 and 1 / 8 / 64."""
    folder = tmp_path_factory.mktemp("bench")
    source = write_classifier(folder / "net.onnx")
    options = BuildOptions(opt=("4x3x8x8",), max=("6x3x8x8",))
    trtkp.build(source, folder / "dense", method="none", options=options)
    trtkp.build(source, folder / "half", n=2, options=BuildOptions(precision="fp16", lowering="dense"))
    return folder


def test_results_are_in_order_and_complete(folder: Path) -> None:
    dense, half = trtkp.bench([folder / "dense", str(folder / "half")], runs=4, warmup=1, threads=1)
    assert (dense.bundle, half.bundle) == (str(folder / "dense"), str(folder / "half"))
    assert (dense.precision, half.precision) == ("fp32", "fp16")
    assert dense.batch == half.batch == 4  # the first one's opt
    for result in (dense, half):
        assert result.backend == "onnxruntime"
        assert result.threads == 1
        assert result.timing.runs == 4
        assert 0 < result.timing.p10_ms <= result.timing.median_ms <= result.timing.p90_ms
        assert result.throughput == pytest.approx(4000 / result.timing.median_ms)


def test_time_limit(folder: Path) -> None:
    assert trtkp.bench([folder / "dense"], runs=100_000, warmup=100_000, seconds=0.05)[0].timing.runs < 100_000


def test_batch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[tuple[int, ...]] = []
    opened = Bundle.open

    def spy(self: Bundle, **options: Any) -> object:
        runner = opened(self, **options)
        run = runner.run
        monkeypatch.setattr(runner, "run", lambda feeds: fed.append(feeds["image"].shape) or run(feeds))
        return runner

    monkeypatch.setattr(Bundle, "open", spy)
    assert trtkp.bench([folder / "half"], batch=5, runs=1, warmup=0)[0].batch == 5
    assert fed == [(5, 3, 8, 8)]


def test_refusals(folder: Path) -> None:
    with pytest.raises(InputError, match=r"dense: batch 7 is outside 1\.\.6, the profile of input image"):
        trtkp.bench([folder / "half", folder / "dense"], batch=7)
    with pytest.raises(InputError, match="--batch 0: out of range; give 1 or more"):
        trtkp.bench([folder / "dense"], batch=0)
    with pytest.raises(InputError, match=r"batch 8 is outside 1\.\.6"):  # the opt of the first
        trtkp.bench([folder / "half", folder / "dense"])
    with pytest.raises(InputError, match="no bundle to time"):
        trtkp.bench([])
    with pytest.raises(InputError, match="the same bundle is named twice"):
        trtkp.bench([folder / "dense", trtkp.load(folder / "dense")])
    for name, value in (("runs", 0), ("warmup", -1), ("threads", 0), ("seconds", 0.0)):
        with pytest.raises(InputError, match=f"--{name} {value:g}: out of range"):
            trtkp.bench([folder / "dense"], **{name: value})  # type: ignore[arg-type]  # numbers, all of them
    with pytest.raises(InputError, match="is not a bundle"):
        trtkp.bench([folder])


class Scaled(nn.Module):
    """An image and a vector that is no batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, image: Tensor, scale: Tensor) -> Tensor:
        return self.conv(image) * scale[:, None, None]


def test_inputs_without_a_batch_keep_their_shape(tmp_path: Path) -> None:
    feeds = (torch.zeros(2, 3, 8, 8), torch.zeros(4))
    dynamic = ({0: torch.export.Dim("batch", min=1, max=16)}, None)
    torch.export.save(torch.export.export(Scaled().eval(), feeds, dynamic_shapes=dynamic), tmp_path / "net.pt2")
    bundle = trtkp.build(tmp_path / "net.pt2", tmp_path / "b", method="none")
    assert trtkp.bench([bundle], batch=3, runs=1)[0].batch == 3
    assert trtkp.bench([bundle], runs=1)[0].batch == 8
    report = trtkp.verify(bundle)
    assert report.ok
    assert {check.status for check in report.checks} == {"verified"}


@pytest.mark.skipif(not importable("tensorrt_rtx"), reason="package tensorrt_rtx is not installed")
@pytest.mark.skipif(bool(find_gpus().gpus), reason="a GPU is here")
def test_engine_that_cannot_run_here(folder: Path, tmp_path: Path) -> None:
    options = BuildOptions(backend="tensorrt-rtx", targets=("sm86",))
    bundle = trtkp.build(folder / "net.onnx", tmp_path / "b", method="none", options=options)
    with pytest.raises(NotRunnableError):
        trtkp.bench([bundle])

"""Bundles of one small net: dense, kep, vskp and int8, with its ONNX file and labelled data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import trtkp
from tests.models import write_classifier
from trtkp.comparison import Comparison
from trtkp.pipeline.options import BuildOptions

ENGINES = ("dense", "kep", "vskp", "int8", "net.onnx")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    source = write_classifier(folder / "net.onnx")
    rng = np.random.default_rng(0)
    np.savez(folder / "data.npz", x=rng.standard_normal((21, 3, 8, 8), np.float32), y=rng.integers(0, 5, 21))
    trtkp.build(source, folder / "dense", method="none", options=BuildOptions(opt=("4x3x8x8",), max=("16x3x8x8",)))
    trtkp.build(source, folder / "kep", share="per-layer", options=BuildOptions(lowering="rectangles"))
    trtkp.build(source, folder / "vskp", method="vskp", filter_group=256, options=BuildOptions(lowering="gather"))
    calibration = trtkp.CalibrationOptions(max_drop=100)
    trtkp.calibrate(folder / "kep", folder / "int8", data=folder / "data.npz", calibration=calibration)
    return folder


@pytest.fixture(scope="session")
def comparison(folder: Path) -> Comparison:
    """All of them, two batch sizes, on labelled data."""
    engines = [folder / name for name in ENGINES]
    return trtkp.compare(engines, batches=(1, 8), data=folder / "data.npz", runs=8, warmup=1, threads=1)


@pytest.fixture
def compared(folder: Path) -> Callable[..., Comparison]:
    """The quickest comparison of engines of the folder."""

    def run(*names: str | Path, **options: object) -> Comparison:
        settings = {"runs": 1, "warmup": 0, "threads": 1, "layers": False} | options
        return trtkp.compare([folder / name for name in names], **settings)  # type: ignore[arg-type]

    return run

"""A model, data and bundles of it as files, which the attacks damage in copies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import trtkp
from tests.models import work_in_copy, write_classifier
from trtkp.pipeline.options import BuildOptions


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``net.onnx``, ``data.npz`` and bundles of the net; not to be changed."""
    folder = tmp_path_factory.mktemp("attack")
    write_classifier(folder / "net.onnx")
    rng = np.random.default_rng(0)
    np.savez(folder / "data.npz", x=rng.standard_normal((8, 3, 8, 8), np.float32), y=rng.integers(0, 5, 8))
    for name, lowering, precision, settings in (
        ("dense", "auto", "fp32", {"method": "none"}),
        ("taps", "taps", "fp32", {"method": "kep", "share": "per-layer"}),
        ("gather", "gather", "fp32", {"method": "vskp", "ratio": 0.5, "filter_group": 8}),
        ("int8", "taps", "int8", {"method": "kep", "share": "per-layer", "data": folder / "data.npz"}),
    ):
        options = BuildOptions(backend="onnxruntime", lowering=lowering, precision=precision)
        trtkp.build(folder / "net.onnx", folder / name, options=options, **settings)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to work in; it is the current folder."""
    return work_in_copy(made, tmp_path, monkeypatch)

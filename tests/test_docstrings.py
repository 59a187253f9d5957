"""Every example in a docstring runs and prints what it says; examples stay light enough to run on any machine."""

from __future__ import annotations

import doctest
import importlib
import shutil
from pathlib import Path

import numpy as np
import pytest

import trtkp
from tests.models import write_classifier

PACKAGE = Path(__file__).parents[1] / "trtkp"
#: Modules whose docstrings hold examples.
MODULES = sorted(
    {
        ".".join(("trtkp", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        for folder in (PACKAGE, PACKAGE / "calib", PACKAGE / "pruning")  # the last two may be links, which rglob skips
        for path in folder.rglob("*.py")
        if ">>> " in path.read_text(encoding="utf-8")
    }
)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that examples run in, as the reference of the Python API describes it."""
    folder = tmp_path_factory.mktemp("examples")
    model = write_classifier(folder / "net.onnx", (3, 16, 16, 16))
    rng = np.random.default_rng(0)
    samples = rng.standard_normal((24, 3, 8, 8)).astype(np.float32)
    np.savez(folder / "samples.npz", x=samples, y=rng.integers(0, 5, 24))
    options = trtkp.BuildOptions(backend="onnxruntime", opt=["8x3x8x8"], threads=1)
    trtkp.build(model, folder / "dense", method="none", options=options)
    trtkp.build(model, folder / "kep", method="kep", n=4, share="per-layer", options=options)
    return folder


def test_there_are_examples() -> None:
    assert len(MODULES) >= 10


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module(name: str, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(prepared, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted
    assert not result.failed

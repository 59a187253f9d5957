"""A model, a bundle of it, and a way to run command lines in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.models import work_in_copy, write_classifier
from trtkp.cli import main


@dataclass(frozen=True)
class Outcome:
    """Exit status and what was written to either stream."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on standard output."""
        return json.loads(self.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))

    @property
    def message(self) -> str:
        """The one line of an error."""
        assert self.out == ""
        assert self.err.count("\n") == 1, self.err
        assert self.err.startswith("error: ")
        assert "Traceback" not in self.err
        assert "internal error" not in self.err
        return self.err.removeprefix("error: ").rstrip("\n")


Trtkp = Callable[..., Outcome]


@pytest.fixture
def trtkp(capsys: pytest.CaptureFixture[str]) -> Trtkp:
    def run(*arguments: str | Path) -> Outcome:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return Outcome(status, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``net.onnx``, the bundles ``kep`` and ``dense``, and ``data.npz``; not to be changed."""
    folder = tmp_path_factory.mktemp("cli")
    write_classifier(folder / "net.onnx")
    rng = np.random.default_rng(0)
    np.savez(folder / "data.npz", x=rng.standard_normal((8, 3, 8, 8), np.float32), y=rng.integers(0, 5, 8))
    assert main(["build", f"{folder / 'net.onnx'}", "-o", f"{folder / 'kep'}", "--lowering", "taps", "--share",
                 "per-layer"]) == 0  # fmt: skip
    assert main(["build", f"{folder / 'net.onnx'}", "-o", f"{folder / 'dense'}", "--method", "none"]) == 0
    return folder


@pytest.fixture
def folder(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to work in; it is the current folder."""
    return work_in_copy(built, tmp_path, monkeypatch)

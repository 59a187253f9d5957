"""The emulated library, which `trtkp.kernels` loads as it loads the real one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.emulation.programs import build_library
from trtkp.kernels import choice
from trtkp.kernels.capi import Library, load_library


@pytest.fixture(scope="session")
def library_path(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The library, compiled once for all the processes of a test run."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "emulation"
    folder.mkdir(exist_ok=True)
    return build_library(folder)


@pytest.fixture
def library(library_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    """The library that the door finds in this test."""
    monkeypatch.setenv("TRTKP_LIBRARY", str(library_path))
    choice.forget()
    yield load_library()
    choice.forget()

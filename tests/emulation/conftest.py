"""The emulated programs, compiled once for all the processes of a test run."""

from __future__ import annotations

from pathlib import Path

import pytest

from .programs import build


@pytest.fixture(scope="session")
def program_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder that every test process of this run sees."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "emulation"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def run_conv(program_folder: Path) -> Path:
    """The C interface with emulated kernels."""
    return build("run_conv", program_folder)


@pytest.fixture(scope="session")
def self_test(program_folder: Path) -> Path:
    """Small kernels that test the emulator."""
    return build("self_test", program_folder)

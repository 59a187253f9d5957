"""The plugins over emulated kernels: a program that plays TensorRT's part, and the two libraries."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.emulation.conftest import program_folder
from tests.emulation.programs import build, build_library, build_live_host

__all__ = ["libraries", "live_host", "plugin_host", "program_folder"]


@pytest.fixture(scope="session")
def plugin_host(program_folder: Path) -> Path:
    """The program."""
    return build("plugin_host", program_folder)


@pytest.fixture(scope="session")
def libraries(program_folder: Path) -> Path:
    """The folder of libtrtkp.so and libtrtkp_register.so."""
    return build_library(program_folder).parent


@pytest.fixture(scope="session")
def live_host(program_folder: Path) -> Path:
    """The program for the registry of a real TensorRT."""
    return build_live_host(program_folder)

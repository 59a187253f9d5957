"""The emulated programs."""

from __future__ import annotations

from pathlib import Path

import pytest

from .programs import build


@pytest.fixture(scope="session")
def run_conv() -> Path:
    """The C interface with emulated kernels."""
    return build("run_conv")


@pytest.fixture(scope="session")
def self_test() -> Path:
    """Small kernels that test the emulator."""
    return build("self_test")

"""The plugins over emulated kernels: programs that play TensorRT's part, and the two libraries."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.emulation.programs import build, build_live_host, build_register_library, build_stub_host


@pytest.fixture(scope="session")
def plugin_host() -> Path:
    """The program that is all of TensorRT."""
    return build("plugin_host")


@pytest.fixture(scope="session")
def live_host() -> Path:
    """The program for the registry of a real TensorRT."""
    return build_live_host()


@pytest.fixture(scope="session")
def libraries() -> Path:
    """The folder of libtrtkp.so and libtrtkp_register.so."""
    return build_register_library().parent


@pytest.fixture(scope="session")
def stub_host() -> Path:
    """The program whose launchers launch nothing."""
    return build_stub_host()


@pytest.fixture(scope="session")
def threaded_host() -> Path:
    """The same under ThreadSanitizer."""
    return build_stub_host(threads=True)

"""The emulated library, which `trtkp.kernels` loads as it loads the real one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from trtkp.kernels import choose
from trtkp.kernels.capi import Library, load_library


@pytest.fixture
def library(library_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    """The library that the door finds in this test."""
    monkeypatch.setenv("TRTKP_LIBRARY", str(library_path))
    choose.forget()
    yield load_library()
    choose.forget()

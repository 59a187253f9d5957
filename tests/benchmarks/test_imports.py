"""Every benchmark can at least be imported: nothing else runs them."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_it_imports(name: str) -> None:
    importlib.import_module(f"benchmarks.{name}")

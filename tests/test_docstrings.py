"""Every example in a docstring runs and prints what it says; examples stay light enough to run on any machine."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

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


def test_there_are_examples() -> None:
    assert len(MODULES) >= 10


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted
    assert not result.failed

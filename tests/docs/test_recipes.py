"""The code of the pages under docs/recipes runs as it is printed, a page from top to bottom."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from trtkp import engine
from trtkp.plan.lowerings import LOWERINGS
from trtkp.pruning.methods.registry import METHODS

PAGES = Path(__file__).parents[2] / "docs" / "recipes"
#: Code between two fences, which stand at the beginning of their lines.
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def unchanged_tables() -> Iterator[None]:
    """Take back what a page registers."""
    tables: list[dict[str, object]] = [METHODS, LOWERINGS, engine._CLASSES]  # type: ignore[list-item]
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)


def code_of(page: Path) -> list[str]:
    """The page's blocks, each with as many empty lines before it as make its line numbers the page's."""
    text = page.read_text(encoding="utf-8")
    return ["\n" * text.count("\n", 0, found.start(1)) + found[1] for found in _BLOCK.finditer(text)]


@pytest.mark.slow
@pytest.mark.usefixtures("unchanged_tables")
@pytest.mark.parametrize("page", ["method", "lowering", "backend"])
def test_the_code_of_a_recipe_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = PAGES / f"{page}.md"
    blocks = code_of(file)
    assert len(blocks) >= 3
    monkeypatch.chdir(tmp_path)
    module = ModuleType(f"recipe_{page}")  # dataclasses and the backends' table look their module up
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for block in blocks:
        exec(compile(block, str(file), "exec"), module.__dict__)  # noqa: S102  # the project's own pages

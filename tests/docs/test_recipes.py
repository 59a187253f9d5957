"""The pages under docs/recipes: their code and their commands run, and the files of their lists exist."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from trtkp.engine import BACKENDS
from trtkp.plan.lowerings import LOWERINGS
from trtkp.pruning.methods.registry import METHODS

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "recipes"


@pytest.fixture
def unchanged_tables() -> Iterator[None]:
    """Take back what a page registers."""
    tables: list[dict[str, Any]] = [METHODS, LOWERINGS, BACKENDS]
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)


def blocks_of(page: str, language: str) -> list[str]:
    """The page's code between fences, each block below as many empty lines as make its line numbers the page's."""
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return ["\n" * text.count("\n", 0, each.start(1)) + each[1] for each in found]


@pytest.mark.slow
@pytest.mark.usefixtures("unchanged_tables")
@pytest.mark.parametrize("page", ["method", "lowering", "backend"])
def test_the_code_of_a_recipe_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = blocks_of(page, "python")
    assert len(blocks) >= 3
    monkeypatch.chdir(tmp_path)
    module = ModuleType(f"recipe_{page}")  # dataclasses and the table of backends look their module up
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for block in blocks:
        exec(compile(block, f"{page}.md", "exec"), module.__dict__)  # noqa: S102  # the project's own pages


#: Puts what a page adds, in a module of its own, into the table, as the page's list says; then runs a command line.
_PROGRAM = """
import importlib, sys
from trtkp.cli.app import run
table = getattr(importlib.import_module({table[0]!r}), {table[1]!r})
table[{name!r}] = {entry}
sys.exit(run())
"""

_ADDED = {
    "method": {
        "table": ("trtkp.pruning.methods.registry", "METHODS"), "name": "l2",
        "entry": "importlib.import_module('added').L2",
    },
    "backend": {
        "table": ("trtkp.engine", "BACKENDS"), "name": "onnx-reference", "entry": "('added', 'OnnxReferenceBackend')",
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("page", _ADDED)
def test_the_commands_of_a_recipe_run(page: str, tmp_path: Path) -> None:
    code = [block.lstrip("\n") for block in blocks_of(page, "python")]
    register = next(i for i, block in enumerate(code) if f"{_ADDED[page]['table'][1]}[" in block)
    own = [block for block in code[:register] if "torch" not in block]
    (tmp_path / "added.py").write_text("\n\n".join(own))
    model = next(block for block in code if "torch.export.save" in block).partition("\noptions = ")[0]
    (tmp_path / "model.py").write_text(model)
    (tmp_path / "program.py").write_text(_PROGRAM.format(**_ADDED[page]))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("model.py")
    (commands,) = blocks_of(page, "console")
    lines = [line.split() for line in commands.strip().splitlines()]
    assert all(words[0] == "trtkp" for words in lines)
    shown = ["".join(run("program.py", *words[1:])) for words in lines]
    (folder,) = (words[words.index("-o") + 1] for words in lines if "-o" in words)
    manifest = json.loads((tmp_path / folder / "manifest.json").read_text())
    if page == "method":
        assert "Settings of l2" in shown[0]
        assert "--ratio" in shown[0]
        assert (manifest["method"], manifest["settings"]) == ("l2", {"ratio": 0.75})
    else:
        assert manifest["backend"] == "onnx-reference"
        assert "backend onnx-reference" in shown[-1]


@pytest.mark.parametrize("page", ["method", "lowering", "backend", "operator"])
def test_the_files_of_a_recipe_exist(page: str) -> None:
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    items = re.findall(r"^\d+\. (.*(?:\n   .*)*)", text, re.MULTILINE)
    assert len(items) >= 5
    named = [name for item in items for name in re.findall(r"`([\w/.<>-]*/[\w/.<>-]*|\w+\.(?:md|toml|yml|txt))`", item)]
    assert len(named) >= len(items)
    for name in named:
        folder = name.partition("<")[0].rpartition("/")[0] if "<" in name else name
        assert (ROOT / folder).exists(), name

"""The lists of docs/recipes, followed for every method, lowering, backend and operator that is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from trtkp.engine import BACKENDS, Availability, Backend, get_backend
from trtkp.graph import ops, packing
from trtkp.index.index_set import Kind
from trtkp.plan.lowerings import LOWERINGS
from trtkp.pruning.method import Method
from trtkp.pruning.methods.registry import METHODS, make_method

ROOT = Path(__file__).parents[1]


def text_of(*files: str) -> str:
    """The text of all files that match."""
    return "".join(file.read_text(encoding="utf-8") for each in files for file in sorted(ROOT.glob(each)))


def rows_of(page: str) -> str:
    """The first cells of a page's tables, one a line."""
    return "\n".join(line.split("|")[1] for line in text_of(page).splitlines() if line.startswith("|"))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_follows_its_recipe(name: str) -> None:
    method = make_method(name)
    assert isinstance(method, Method)
    assert method.name == name
    assert isinstance(method.settings(), dict)
    home = type(method).__module__.rpartition(".")[2]
    assert (ROOT / "prune/methods" / f"{home}.py").is_file()
    assert (ROOT / "tests/pruning/methods" / f"test_{home}.py").is_file()
    if method.option is None:
        assert f"`{name}`" in rows_of("docs/methods/index.md")
    else:  # chosen in place of --method
        assert f"`{method.option}`" in text_of("docs/methods/*.md")


@pytest.mark.parametrize("name", LOWERINGS)
def test_every_lowering_follows_its_recipe(name: str) -> None:
    lowering = LOWERINGS[name]
    assert lowering.name == name
    assert lowering.summary
    # gather-1, gather-2, ... are made and tested together; all but the first have one row
    several = re.fullmatch(r"gather-\d+", name)
    for files in ("trtkp/plan/lowerings/*.py", "tests/plan/lowerings/*.py", "tests/calib/test_placement.py"):
        assert several or f'"{name}"' in text_of(files)
    row = "gather-N" if several and name != "gather-1" else name
    assert f"`{row}`" in rows_of("docs/architecture/planning.md")


@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_follows_its_recipe(name: str) -> None:
    backend = get_backend(name)
    assert isinstance(backend, Backend)
    assert backend.name == name
    assert isinstance(backend.availability(), Availability)
    module, kind = BACKENDS[name]
    assert module.startswith("trtkp.engine.")
    assert f"``{name}``" in text_of("trtkp/engine/__init__.py")
    assert kind in text_of("tests/engine/**/test_*.py") or f'get_backend("{name}")' in text_of("tests/engine/**/*.py")
    assert f"`{name}`" in rows_of("docs/guides/build.md")
    assert f"`{backend.artefact}`" in rows_of("docs/reference/files.md")


def test_every_operator_follows_its_recipe() -> None:
    packed = {packing.BASE_OF_KIND[kind] for kind in Kind}
    assert packed == set(ops.BASES)
    for base in (*ops.BASES, ops.DYNAMIC):
        assert base in (ops.__doc__ or "")
        assert base in text_of("docs/architecture.md")
        assert ops.OpName.parse(base) == ops.OpName(base)

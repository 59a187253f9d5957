"""The lists of docs/recipes, followed for every method and operator that is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from trtkp.graph import ops, packing
from trtkp.index.index_set import Kind
from trtkp.pruning.method import Method
from trtkp.pruning.methods.registry import METHODS, make_method

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_follows_its_recipe(name: str) -> None:
    method = make_method(name)
    assert isinstance(method, Method)
    assert method.name == name
    assert isinstance(method.settings(), dict)
    home = type(method).__module__.rpartition(".")[2]
    assert (ROOT / "prune/methods" / f"{home}.py").is_file()
    assert (ROOT / "tests/pruning/methods" / f"test_{home}.py").is_file()
    assert name in "".join(page.read_text() for page in (ROOT / "docs" / "methods").glob("*.md"))


def test_every_operator_follows_its_recipe() -> None:
    packed = {packing.BASE_OF_KIND[kind] for kind in Kind}
    assert packed == set(ops.BASES)
    for base in (*ops.BASES, ops.DYNAMIC):
        assert base in (ops.__doc__ or "")
        assert base in (ROOT / "docs" / "architecture.md").read_text()
        assert ops.OpName.parse(base) == ops.OpName(base)

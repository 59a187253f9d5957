"""Rooms import each other in one direction only.

The contracts of import-linter order modules. They cannot see a ring between a folder and a folder inside it, such as
``serving/serve.py`` → ``serving/server/`` → ``serving/options.py``, so this test looks at folders.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]


def room_of(module: str) -> str:
    """The folder of a module. Each file at the top of ``trtkp`` is a room of its own."""
    folder = module if (ROOT / module.replace(".", "/")).is_dir() else module.rpartition(".")[0]
    return module if folder == "trtkp" else folder


def arrows(imports: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    """For each room, the rooms that it imports."""
    found: dict[str, set[str]] = defaultdict(set)
    for importer, imported in imports:
        if room_of(importer) != room_of(imported):
            found[room_of(importer)].add(room_of(imported))
    return found


def ring(imports: Iterable[tuple[str, str]]) -> list[str]:
    """Rooms that import each other in a ring, or nothing."""
    try:
        TopologicalSorter(arrows(imports)).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


@pytest.fixture(scope="module")
def imports() -> list[tuple[str, str]]:
    graph = grimp.build_graph("trtkp", cache_dir=None)
    return [(module, other) for module in graph.modules for other in graph.find_modules_directly_imported_by(module)]


def test_no_room_is_in_a_ring(imports: list[tuple[str, str]]) -> None:
    assert len(imports) > 1000
    assert ring(imports) == []


def test_a_ring_between_a_room_and_its_inner_room_is_found(imports: list[tuple[str, str]]) -> None:
    assert "trtkp.serving.server" in ring([*imports, ("trtkp.serving.options", "trtkp.serving.server.start")])

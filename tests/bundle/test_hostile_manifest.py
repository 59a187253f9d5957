"""A manifest that somebody has edited, with its hash made anew: read as it stands, or refused in a line."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import trtkp
from trtkp.bundle.inspection import inspect
from trtkp.bundle.manifest import hash_line
from trtkp.errors import InputError
from trtkp.serving.contract import Contract
from trtkp.serving.worker.process import _warm_up

_DELETED = object()
_VALUES: tuple[Any, ...] = (_DELETED, None, -1, 0, 2**70, 1e400, "", [], {}, "x" * 100_000, [[]], {"a": 1}, True)

Place = tuple[str | int, ...]


def places(value: Any, path: Place = ()) -> Iterator[Place]:
    """Every place in a document; of a list, the first two."""
    children = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, child in children:
        yield (*path, key)
        yield from places(child, (*path, key))


def changed(document: Any, path: Place, value: Any) -> Any:
    document = copy.deepcopy(document)
    parent = document
    for key in path[:-1]:
        parent = parent[key]
    if value is _DELETED:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    return document


@pytest.mark.slow
def test_every_field(bundle: Path) -> None:
    """Each field deleted and replaced by each of many values: 2,700 manifests."""
    original = json.loads((bundle / "manifest.json").read_text())
    refusals: list[str] = []
    for path in places(original):
        for value in _VALUES:
            text = json.dumps(changed(original, path, value)).encode()
            (bundle / "manifest.json").write_bytes(text)
            (bundle / "manifest.sha256").write_bytes(hash_line(text))
            try:
                opened = trtkp.load(bundle)
                inspect(opened)
                _warm_up(opened, Contract.of(opened, "model"))
            except InputError as error:
                refusals.append(str(error))
    assert len(refusals) > 1000
    assert not [text for text in refusals if "\n" in text or len(text) > 1000]


def test_profile_that_does_not_fit(bundle: Path) -> None:
    original = json.loads((bundle / "manifest.json").read_text())
    [name] = original["profile"]
    for path, value in (
        (("profile",), {}),
        (("profile", name, "min"), [2, 3, 8]),
        (("profile", name, "min"), [70, 3, 8, 8]),
        (("profile", name, "max"), [64, 4, 8, 8]),
        (("inputs", 0, "name"), "other"),
        (("outputs",), []),
    ):
        text = json.dumps(changed(original, path, value)).encode()
        (bundle / "manifest.json").write_bytes(text)
        (bundle / "manifest.sha256").write_bytes(hash_line(text))
        with pytest.raises(InputError, match=r"profile|outputs are empty"):
            trtkp.load(bundle)

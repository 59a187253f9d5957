"""The models of a server: bundles by name and version."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from trtkp.bundle import MANIFEST, Bundle, load
from trtkp.errors import InputError

__all__ = ["find_bundles"]


def find_bundles(paths: Sequence[Path]) -> list[tuple[str, str, Bundle]]:
    """Name, version and checked bundle of every model.

    A model's name is its bundle's directory name. A directory of numbered bundles (``net/1``, ``net/2``) is one model
    with these versions; bundles of one name in different places become its next versions, in the order given.

    Raises:
        InputError: nothing given, no bundle there, or one that was changed.
    """
    if not paths:
        raise InputError("no bundle to serve")
    found: dict[str, dict[str, Bundle]] = {}
    for path in paths:
        name = os.path.basename(os.path.abspath(path))  # noqa: PTH100, PTH119 - without ``..``, links as they are named
        if not name:
            raise InputError("has no name that a model could have", file=path, remedy="name a bundle's directory")
        numbered = _versions(path)
        versions = found.setdefault(name, {})
        if numbered:
            if versions:
                raise InputError(f"model {name} is given twice", file=path)
            versions.update({version.name: load(version) for version in numbered})
        else:
            versions[str(max((int(version) for version in versions), default=0) + 1)] = load(path)
    return [(name, version, bundle) for name, versions in found.items() for version, bundle in versions.items()]


def _versions(path: Path) -> list[Path]:
    if not path.is_dir() or (path / MANIFEST).exists():
        return []
    numbered = [child for child in path.iterdir() if child.name.isdecimal() and (child / MANIFEST).is_file()]
    return sorted(numbered, key=lambda child: int(child.name))

"""Find the models to serve: bundles by name and version."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from trtkp.bundle import MANIFEST, Bundle, load
from trtkp.errors import InputError

__all__ = ["find_bundles"]


def find_bundles(paths: Sequence[Path]) -> list[tuple[str, str, Bundle]]:
    """Open and check bundles. Returns name, version and bundle of each.

    The name of a model is the name of its bundle's directory. A directory of numbered bundles (``net/1``, ``net/2``) is
    one model with these versions. Bundles with the same name in different places are versions 1, 2, ... of one model,
    in the order given.

    Args:
        paths: bundles, or directories of numbered bundles.

    Raises:
        InputError: no path was given, or a path is not a bundle.
        IntegrityError: a file of a bundle is missing or was changed.
    """
    if not paths:
        raise InputError("no bundle to serve", remedy="name at least one bundle")
    found: dict[str, dict[str, Bundle]] = {}
    for path in paths:
        # resolve() would follow a link, but a link's own name is the one the user chose for the model.
        name = os.path.basename(os.path.abspath(path))  # noqa: PTH100, PTH119
        if not name:
            raise InputError("has no name to give to a model", file=path, remedy="name a bundle's directory")
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

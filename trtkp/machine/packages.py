"""Packages that only some of trtkp needs."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING

from trtkp.errors import JobError

if TYPE_CHECKING:
    pass

__all__ = ["importable", "installed_version", "require"]


def require(purpose: str, extra: str, packages: Mapping[str, str]) -> None:
    """Refuse what cannot end, before hours of work.

    Args:
        purpose: what needs them, for the message.
        extra: of trtkp, which brings them.
        packages: module to the package that has it.

    Raises:
        JobError: one is not installed.
    """
    missing = [package for module, package in packages.items() if not importable(module)]
    if missing:
        raise JobError(f"{purpose} needs {', '.join(missing)}", remedy=f"pip install 'trtkp[{extra}]'")


def installed_version(*distributions: str) -> str | None:
    """Version of the first of these distributions that is installed; imports none of them."""
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def importable(module: str) -> bool:
    """Whether a top-level module is there, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False

"""Packages that only some of trtkp needs."""

from __future__ import annotations

from collections.abc import Mapping

from trtkp.engine.base import importable
from trtkp.errors import JobError

__all__ = ["require"]


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

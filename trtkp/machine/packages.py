"""Optional packages: which of them are installed, and refusing early what needs one that is not."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping

from trtkp.errors import JobError

__all__ = ["importable", "installed_version", "require"]


def require(purpose: str, extra: str, packages: Mapping[str, str]) -> None:
    """Check for optional packages before work starts that would fail without them hours later.

    Args:
        purpose: what needs the packages, for the message.
        extra: the extra of trtkp that installs them.
        packages: name of each module to the package that provides it.

    Raises:
        JobError: a package is not installed.
    """
    missing = [package for module, package in packages.items() if not importable(module)]
    if missing:
        raise JobError(f"{purpose} needs {', '.join(missing)}", remedy=f"pip install 'trtkp[{extra}]'")


def installed_version(*distributions: str) -> str | None:
    """Version of the first of these distributions that is installed. None of them is imported."""
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def importable(module: str) -> bool:
    """Whether a module can be found. The module itself is not imported.

    Example:
        >>> importable("json"), importable("no_such_module")
        (True, False)
    """
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False

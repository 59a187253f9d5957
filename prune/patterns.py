"""Names of layers as users write them: shell patterns on parameter names."""

from __future__ import annotations

from fnmatch import fnmatchcase

__all__ = ["matches"]


def matches(name: str, pattern: str) -> bool:
    """Whether a parameter name fits a pattern, with or without its trailing ``.weight``."""
    return fnmatchcase(name, pattern) or fnmatchcase(name.removesuffix(".weight"), pattern)

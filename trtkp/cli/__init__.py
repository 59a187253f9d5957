"""The command line, ``trtkp``."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 success, 1 a failed job, 2 bad usage or input."""
    from trtkp.cli.app import run

    return run(arguments)

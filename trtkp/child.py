"""Python processes of our own: they import what the parent imports, and go when the parent goes."""

from __future__ import annotations

import contextlib
import ctypes
import json
import signal
import sys
from pathlib import Path

__all__ = ["child_command", "die_with_parent"]

#: A child searches modules where its parent does (a source tree, an environment) and not in the current directory,
#: where a stray file could shadow one.
_START = (
    "import importlib, json, sys; sys.path[:] = json.loads(sys.argv[1]); importlib.import_module(sys.argv[2]).main()"
)

_PR_SET_PDEATHSIG = 1


def child_command(module: str) -> list[str]:
    """The command line that runs ``main()`` of a module in a new interpreter."""
    paths = [path or str(Path.cwd()) for path in sys.path]
    return [sys.executable, "-P", "-c", _START, json.dumps(paths), module]


def die_with_parent() -> None:
    """On Linux the kernel ends this process with its parent, even while a library holds every lock."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

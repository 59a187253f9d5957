"""Child processes that run a module of trtkp: how they are started, and how they end with their parent."""

from __future__ import annotations

import contextlib
import ctypes
import json
import signal
import sys
from abc import abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["Closing", "child_command", "die_with_parent", "peak_bytes"]

_PR_SET_PDEATHSIG = 1


def child_command(module: str) -> list[str]:
    """The command line that runs ``main()`` of a module in a new Python process.

    The child looks for modules where its parent does (a checkout, an environment). It does not look in the current
    directory, where a stray file could shadow a module.
    """
    # -P keeps the current directory out of sys.path; the parent's path arrives as an argument.
    start = f"import json, sys; sys.path[:] = json.loads(sys.argv[1]); from {module} import main; main()"
    return [sys.executable, "-P", "-c", start, json.dumps([path or str(Path.cwd()) for path in sys.path])]


def die_with_parent() -> None:
    """Ask the Linux kernel to kill this process when its parent ends, even if a library holds every lock by then."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def peak_bytes() -> int | None:
    """Peak resident memory of this process in bytes; None if the system does not report it.

    On Linux it is ``VmHWM``. ``ru_maxrss`` survives ``exec``, so a child would report its parent's peak as its own.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, LookupError, ValueError):
        pass
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Closing:
    """A context manager that calls `close` on exit."""

    @abstractmethod
    def close(self) -> None:
        """Release all resources. A second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

"""Starting one of our modules in a process of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

__all__ = ["child_command", "peak_bytes"]


def child_command(module: str) -> list[str]:
    """The command line that runs ``main()`` of a module.

    The child searches modules where the caller does (a source tree, an environment) and not in the current directory,
    where a stray file could shadow one.
    """
    start = f"import json, sys; sys.path[:] = json.loads(sys.argv[1]); from {module} import main; main()"
    return [sys.executable, "-P", "-c", start, json.dumps([path or str(Path.cwd()) for path in sys.path])]


def peak_bytes() -> int | None:
    """Peak resident memory of this process; None where the system does not tell.

    On Linux it is ``VmHWM``: ``ru_maxrss`` outlives ``exec``, so a child would report its parent's memory as its own.
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

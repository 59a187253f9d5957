"""The file descriptors of the process, and how many connections they allow."""

from __future__ import annotations

import logging
import resource
from pathlib import Path

from trtkp.errors import InputError
from trtkp.serving.admission.connections import RESERVE
from trtkp.serving.logs import log

__all__ = ["affordable_connections"]

#: For libraries, logs, the files of a bundle that is checked, and connections that are being refused.
_SPARE = 64


def affordable_connections(wanted: int, workers: int) -> int:
    """Raise the limit of descriptors as far as the system lets us, and return how many connections they allow.

    What workers need is kept back, twice: a dead one is started again before all of its descriptors are closed, and a
    reload starts new ones beside the old.

    Args:
        wanted: connections that the user wants at once.
        workers: descriptors that the start of all workers takes.

    Raises:
        InputError: no descriptor is left for connections.

    Example:
        >>> affordable_connections(wanted=1, workers=10)
        1
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    kept = _SPARE + RESERVE + 2 * workers + len(list(Path("/proc/self/fd").iterdir()))
    left = hard - kept if hard != resource.RLIM_INFINITY else wanted
    if left < 1:
        raise InputError(
            f"{hard} file descriptors are too few: {kept} are needed besides connections", remedy="raise ulimit -n"
        )
    if left < wanted:
        log("fewer connections than asked for", level=logging.WARNING, connections=left, descriptors=hard)
    return min(left, wanted)

"""Files of caches: read within bounds, replaced whole, set aside when they are odd.

A cache lies in a directory that other programs and other users may write to, and losing it costs time alone. So nothing
in it may fail a build or hold it up: a link to a device, a FIFO or a huge file is refused before it is read.
"""

from __future__ import annotations

import os
import stat
import time
from contextlib import suppress
from pathlib import Path

from trtkp.files import replacing

__all__ = ["read_cache", "set_aside", "write_cache"]

#: A FIFO without a writer would hold up an open without it. Windows has neither FIFOs in directories nor the flag.
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)
#: Age in seconds beyond which nobody writes a part of a file any more.
_FORGOTTEN_S = 86_400
_BINARY = getattr(os, "O_BINARY", 0)


def read_cache(path: Path, limit: int) -> bytes:
    """Read a cache's file. Links are followed, to regular files only.

    Args:
        path: the file.
        limit: most bytes that it may have.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be opened or read.
        ValueError: it is not a regular file, or larger than the limit.

    Example:
        >>> read_cache(Path("/dev/null"), 100)
        Traceback (most recent call last):
        ...
        ValueError: not a regular file
    """
    handle = os.open(path, os.O_RDONLY | _NONBLOCK | _BINARY)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ValueError("not a regular file")
    with os.fdopen(handle, "rb") as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"larger than {limit} bytes")
    return content


def set_aside(path: Path) -> str:
    """Rename an unusable file to ``*.bad``, in place of an older one. Returns what was done, for a message."""
    bad = path.with_name(f"{path.name}.bad")
    with suppress(OSError):
        path.replace(bad)
        return f"set aside as {bad.name}"
    return "ignored"


def write_cache(path: Path, content: bytes) -> None:
    """Write beside the file's place and rename: another process never reads half of it.

    Raises:
        OSError: it cannot be written; the older file is as it was.
    """
    for part in path.parent.glob(".trtkp-*.part"):  # of builds that were killed
        with suppress(OSError):
            if time.time() - part.stat().st_mtime > _FORGOTTEN_S:
                part.unlink()
    # Not flushed to disk: a file that a power failure empties is odd, and is set aside.
    with replacing(path, durable=False) as part:
        part.write_bytes(content)

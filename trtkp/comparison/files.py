"""Check that a report can be written, before the measurements."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from trtkp.errors import InputError
from trtkp.files import check_name

__all__ = ["check_target"]


def check_target(path: Path, sources: Iterable[Path] = ()) -> None:
    """Check that a file can be written. Called before the measurements, which can take hours.

    Args:
        path: the file to write.
        sources: the files and bundles that are read, which must not be overwritten.

    Raises:
        InputError: the path is a directory, its directory does not exist or cannot be written, or it is one of the
            sources or lies in one.
    """
    check_name(path)
    if path.is_dir():
        raise InputError("is a directory", file=path, remedy="name a file")
    if not path.absolute().parent.is_dir():
        raise InputError("its directory does not exist", file=path, remedy="create it, or choose another place")
    # asked of the system, which knows the rights; a file system mounted read-only refuses as well
    replaced = path.is_file() or not path.exists()  # others, such as /dev/stdout, are written to
    if not os.access(path.absolute().parent if replaced else path, os.W_OK):
        raise InputError("cannot be written (Permission denied)", file=path, remedy="choose another place")
    real = path.resolve()
    for source in sources:
        if source.resolve() in (real, *real.parents):
            raise InputError(f"would overwrite {source} or a file in it", file=path, remedy="choose another place")

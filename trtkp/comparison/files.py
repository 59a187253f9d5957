"""Write a file atomically: afterwards it holds the new content, or what it held before."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from trtkp.errors import InputError

__all__ = ["check_target", "write_text"]


def check_target(path: Path, sources: Iterable[Path] = ()) -> None:
    """Check that a file can be written. Called before the measurements, which can take hours.

    Args:
        path: the file to write.
        sources: the files and bundles that are read, which must not be overwritten.

    Raises:
        InputError: the path is a directory, its directory does not exist, or it is or lies in one of the sources.
    """
    if path.is_dir():
        raise InputError("is a directory", file=path, remedy="name a file")
    if not path.absolute().parent.is_dir():
        raise InputError("its directory does not exist", file=path, remedy="create it, or choose another place")
    real = path.resolve()
    for source in sources:
        if source.resolve() in (real, *real.parents):
            raise InputError(f"would overwrite {source} or a file in it", file=path, remedy="choose another place")


def write_text(path: Path, text: str) -> None:
    """Write a text file. An existing file is replaced only when the new one is complete and on disk.

    Raises:
        InputError: the file cannot be written.
    """
    temporary: Path | None = None
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", newline="\n", dir=path.absolute().parent, prefix=f".{path.name}.", delete=False
        ) as file:
            temporary = Path(file.name)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # the rights of an ordinary file; a temporary one is readable by its owner only
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror or error})", file=path) from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)

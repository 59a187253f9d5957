"""Writing a file so that it is there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from trtkp.errors import InputError

__all__ = ["check_target", "write_text"]


def check_target(path: Path, sources: Iterable[Path] = ()) -> None:
    """Refuse a place that cannot be written, before hours of timing.

    Args:
        path: of the file to write.
        sources: what is read, files and bundles; they are not to be written over.

    Raises:
        InputError: a directory, in a folder that is not there, or one of the sources or inside one.
    """
    if path.is_dir():
        raise InputError("is a directory", file=path, remedy="name a file")
    if not path.absolute().parent.is_dir():
        raise InputError("its folder is not there", file=path, remedy="make it, or choose another place")
    real = path.resolve()
    for source in sources:
        if source.resolve() in (real, *real.parents):
            raise InputError(f"would be written over or into {source}", file=path, remedy="choose another place")


def write_text(path: Path, text: str) -> None:
    """Write a file; what stood there before is replaced only when the new one is whole.

    Raises:
        InputError: it cannot be written.
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
        temporary.chmod(0o666 & ~mask)  # a temporary file is its owner's alone
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror or error})", file=path) from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)

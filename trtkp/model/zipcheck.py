"""Reading ZIP archives from untrusted sources: all members are checked before any is read, all sizes are bounded."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path, PurePosixPath
from typing import IO

from trtkp.errors import InputError

__all__ = ["CheckedZip", "open_zip"]

_MAX_MEMBERS = 200_000
_AGAIN = "copy or save the file again"


def open_zip(handle: IO[bytes], path: Path) -> zipfile.ZipFile:
    """Open an archive and read its directory, but no member. The archive must begin at the start of the file.

    Raises:
        InputError: the archive is broken.
    """
    handle.seek(0)
    try:
        archive = zipfile.ZipFile(handle)
        # The end of a program whose beginning is lost may be a complete archive: that of its pickled sample inputs.
        if min((info.header_offset for info in archive.infolist()), default=0):
            raise zipfile.BadZipFile("does not begin at the file's beginning")
    # zipfile raises NotImplementedError for versions of the format that it does not support.
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError, OverflowError) as error:
        raise InputError(f"is a damaged or cut-off ZIP archive ({error})", file=path, remedy=_AGAIN) from None
    return archive


class CheckedZip:
    """A ZIP archive as PyTorch writes it: uncompressed members under one root folder.

    PyTorch never compresses, so compressed members are refused. If all members are stored, and their sizes add up to no
    more than the size of the file, an archive cannot unpack to more than its own size.

    Raises:
        InputError: the archive is broken, a name is duplicate, absolute or has "..", a member is compressed or
            encrypted, or the members claim more bytes than the file has.
    """

    def __init__(self, handle: IO[bytes], path: Path) -> None:
        self.path = path
        self._zip = open_zip(handle, path)
        infos = self._zip.infolist()
        self._check(infos, handle.seek(0, os.SEEK_END))
        roots = {info.filename.split("/", 1)[0] for info in infos if "/" in info.filename}
        # Programs that PyTorch up to 2.6 saved have no root folder.
        self.root = f"{roots.pop()}/" if len(roots) == 1 and all("/" in i.filename for i in infos) else ""
        self._infos = {info.filename.removeprefix(self.root): info for info in infos if not info.is_dir()}

    @property
    def names(self) -> list[str]:
        """Member names below the root folder, in the archive's order."""
        return list(self._infos)

    def __contains__(self, name: str) -> bool:
        return name in self._infos

    def size(self, name: str) -> int:
        """Size of a member in bytes."""
        return self._info(name).file_size

    def read(self, name: str) -> bytearray:
        """The bytes of a member, checked against its CRC. They are writable: a tensor can use them without a copy."""
        info = self._info(name)
        data = bytearray(info.file_size)
        view, done = memoryview(data), 0
        try:
            with self._zip.open(info) as member:
                while done < len(data):
                    count = member.readinto(view[done : done + (1 << 22)])  # type: ignore[attr-defined]
                    if not count:
                        raise EOFError("cut off")
                    done += count
                # zipfile compares the CRC when it reaches the end of the member.
                member.read(1)
        except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError, RuntimeError) as error:
            raise InputError(f"member {name} is damaged ({error})", file=self.path, remedy=_AGAIN) from None
        return data

    def _info(self, name: str) -> zipfile.ZipInfo:
        try:
            return self._infos[name]
        except KeyError:
            raise InputError(f"the archive has no member {name}", file=self.path, remedy=_AGAIN) from None

    def _check(self, infos: list[zipfile.ZipInfo], file_size: int) -> None:
        seen: set[str] = set()
        total = 0
        if not infos or len(infos) > _MAX_MEMBERS:
            raise InputError(f"the archive has {len(infos)} members", file=self.path)
        for info in infos:
            name, shown = info.filename, ascii(info.filename[:80])
            problem = None
            if info.filename != info.orig_filename or "\\" in name or "\0" in name:
                problem = "has a forbidden character in its name"
            elif PurePosixPath(name).is_absolute() or ".." in name.split("/"):
                problem = "points outside the archive"
            elif name in seen:
                problem = "appears twice"
            elif info.flag_bits & 0x1:
                problem = "is encrypted"
            elif info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
                problem = "is compressed, which PyTorch never does"
            if problem:
                raise InputError(f"member {shown} {problem}: refused", file=self.path, remedy="export the model again")
            seen.add(name)
            total += info.file_size
        if total > file_size:
            raise InputError(
                f"the archive's members claim {total} bytes, the file has {file_size}: refused",
                file=self.path,
                remedy=_AGAIN,
            )

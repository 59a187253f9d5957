"""Files on disk: written so that they are complete or absent, and read so that no file can hang or exhaust a program.

A new file gets the mode that the umask gives, whichever library writes its content.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import IO, Any

from trtkp.errors import InputError, JobError

__all__ = [
    "MOST_JSON",
    "check_folder",
    "check_name",
    "flush",
    "give_usual_modes",
    "is_full",
    "open_regular",
    "parse_json",
    "read_file",
    "reading",
    "replacing",
    "unreadable",
    "unwritable",
    "write_file",
    "writing",
]

#: Bytes that a JSON or YAML file may have. The manifest of a net of 1,000 layers has about 1 MB.
MOST_JSON = 64 << 20


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Write a file beside ``path``, then rename it to ``path``: afterwards the old content is there, or the new one.

    A link is followed, and a file that is replaced keeps its mode.

    Args:
        path: the file; its folder exists.
        durable: flush the file to disk first, so that a power failure cannot leave it empty.

    Returns:
        The path to write to, of an empty file. It is removed if the block fails.

    Raises:
        OSError: as the system reports it; `writing` makes one line of it.

    Example:
        >>> from pathlib import Path
        >>> with replacing(Path("times.json")) as part:
        ...     _ = part.write_text("{}")
        >>> Path("times.json").read_text()
        '{}'
    """
    if path.exists() and not path.is_file():
        number = errno.EISDIR if path.is_dir() else errno.EINVAL
        raise OSError(number, "Is a directory" if path.is_dir() else "Not a regular file", str(path))
    path = path.resolve() if path.is_symlink() else path
    # not named after the file: its name may be as long as names may be
    part = path.absolute().with_name(f".trtkp-{os.getpid()}-{token_hex(4)}.part")
    os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        mode = stat.S_IMODE((path if path.exists() else part).stat().st_mode)
        part.chmod(mode)  # before there is anything to read
        yield part
        if stat.S_IMODE(part.stat().st_mode) != mode:
            part.chmod(mode)  # safetensors replaces the file by one that only its owner can read
        if durable:
            flush(part)
        part.replace(path)
        if durable:
            flush(path.absolute().parent)  # otherwise a power failure could undo the rename
    finally:
        part.unlink(missing_ok=True)


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file; an existing one is replaced only when the new one is complete and on disk. Text becomes UTF-8.

    Raises:
        JobError: the file cannot be written.
    """
    data = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    with writing(path):
        if path.exists() and not path.is_file():  # such as /dev/stdout, which is written to and not replaced
            path.write_bytes(data)
            return
        with replacing(path) as part:
            part.write_bytes(data)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system or a library says about a failed write into one line.

    Raises:
        JobError: instead of `OSError`, and of safetensors' own exception.
    """
    try:
        yield
    except Exception as error:
        # safetensors reports a full disk in an exception of its own, and torch in a RuntimeError
        if isinstance(error, OSError) or is_full(error) or type(error).__name__ == "SafetensorError":
            raise unwritable(error, path) from error
        raise


def unwritable(error: BaseException, path: Path, *, note: str = "") -> JobError:
    """The line that says why a file or folder was not written, and what to do."""
    reason = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    remedy = "free some space" if is_full(error) else "choose another place, or change its permissions with chmod"
    return JobError(f"cannot be written ({reason}){note}", file=path, remedy=remedy)


def is_full(error: BaseException) -> bool:
    """Whether the error means a full disk, an exhausted quota, or a file size limit.

    Libraries in Rust and C++ give the number or the words in the message only: on Linux 28 is ENOSPC, 122 EDQUOT and
    27 EFBIG.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    text = str(error)
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return any(f"os error {number}" in text or os.strerror(number) in text for number in numbers)


def check_folder(path: Path) -> None:
    """Check that a folder can be made at ``path``, or replaced by a rename, before hours are spent on its content.

    Raises:
        InputError: a file or a link is there, a file system is mounted there, it is the current folder, its name is too
            long for the names of the temporary files beside it, or the folder above it cannot be written.
    """
    remedy = "choose another -o"
    target = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow a link at the target
    check_name(target, remedy)
    try:
        if target.is_symlink():
            raise InputError("is a link, not a directory", file=path, remedy=remedy)
        if target.exists() and not target.is_dir():
            raise InputError("exists and is not a directory", file=path, remedy=remedy)
        if target.exists():
            inside = "name a folder in it"
            if _is_mount(target):
                raise InputError("is a mount point, which cannot be replaced as a whole", file=path, remedy=inside)
            if target.samefile(Path.cwd()):
                raise InputError("is the current folder, which cannot be replaced", file=path, remedy=inside)
        with suppress(FileNotFoundError):  # the longest of the hidden names beside it, for names may be too long
            target.with_name(f".{target.name}.building-{1 << 32}").lstat()
        above = next(folder for folder in target.parents if folder.exists())
        if not above.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(above, os.W_OK | os.X_OK):
            read_only = os.statvfs(above).f_flag & os.ST_RDONLY if hasattr(os, "statvfs") else 0
            raise PermissionError(number := errno.EROFS if read_only else errno.EACCES, os.strerror(number))
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise InputError(
            f"cannot be written ({getattr(error, 'strerror', None) or error})", file=path, remedy=remedy
        ) from None


def check_name(path: str | os.PathLike[str], remedy: str = "rename it") -> None:
    """Check that a path is text: JSON, safetensors and ONNX Runtime take no other names.

    Raises:
        InputError: it has bytes that are not UTF-8.
    """
    name = os.fspath(path)
    if any("\ud800" <= char <= "\udfff" for char in name):
        raise InputError(f"{name!a}: the name is not UTF-8", remedy=remedy)


def _is_mount(path: Path) -> bool:
    if path.is_mount():
        return True
    try:  # a folder of the same file system can be mounted too ("bind"), which only this list tells
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return False
    octal = re.compile(rb"\\([0-7]{3})")
    places = {octal.sub(lambda match: bytes([int(match[1], 8)]), line.split()[4]) for line in lines}
    return os.fsencode(path.resolve()) in places


def flush(path: Path) -> None:
    """Write a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot, as some on networks
            raise
    finally:
        os.close(descriptor)


def give_usual_modes(folder: Path) -> None:
    """Give the files of a folder the mode that a new file gets there: some libraries write for the owner alone."""
    probe = folder / f".trtkp-{token_hex(4)}.part"
    os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in folder.iterdir():
        if path.is_file() and stat.S_IMODE(path.stat().st_mode) != mode:
            path.chmod(mode)


# --- reading ----------------------------------------------------------------------------------------------------------


def open_regular(path: str | os.PathLike[str], what: str = "file", remedy: str | None = None) -> IO[bytes]:
    """Open a file that must be a regular one: opening a pipe could wait forever, and a device has no end.

    Args:
        path: the file.
        what: what is expected there, for the message.
        remedy: what to do if there is something else.

    Raises:
        InputError: there is no such file, it is a directory or a device, or it may not be read.
    """
    check_name(path)
    try:
        # without O_NONBLOCK, opening a pipe would block
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        handle = os.fdopen(os.open(path, flags), "rb")
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise unreadable(error, path, what, remedy) from None
    mode = os.fstat(handle.fileno()).st_mode
    if not stat.S_ISREG(mode):
        handle.close()
        problem = f"is a directory, not a {what}" if stat.S_ISDIR(mode) else "is not a regular file"
        raise InputError(problem, file=path, remedy=remedy)
    return handle


def read_file(
    path: str | os.PathLike[str], what: str = "file", remedy: str | None = None, *, most: int = MOST_JSON
) -> bytes:
    """The content of a file that should be small.

    Raises:
        InputError: it cannot be read, is no regular file, or has more than ``most`` bytes.
    """
    with open_regular(path, what, remedy) as file, reading(path, what, remedy):
        size = os.fstat(file.fileno()).st_size
        content = file.read(most + 1) if size <= most else b""
    if size > most or len(content) > most:
        raise InputError(f"has {max(size, most + 1):,} bytes, more than the {most:,} of a {what}", file=path)
    return content


@contextmanager
def reading(path: str | os.PathLike[str], what: str = "file", remedy: str | None = None) -> Iterator[None]:
    """Turn an `OSError` of a read into one line that names the file and what to do.

    Raises:
        InputError: instead of the `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise unreadable(error, path, what, remedy) from None


def unreadable(
    error: OSError | ValueError, path: str | os.PathLike[str], what: str = "file", remedy: str | None = None
) -> InputError:
    """The line that says why a file cannot be read, and what to do."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return InputError("no such file", file=path, remedy=remedy or "check the path")
    if isinstance(error, IsADirectoryError):
        return InputError(f"is a directory, not a {what}", file=path, remedy=remedy)
    if isinstance(error, PermissionError):
        return InputError(
            f"cannot be read ({error.strerror or 'Permission denied'})",
            file=path,
            remedy="let its owner make it readable with chmod a+r, and its folders with chmod a+rx",
        )
    reason = getattr(error, "strerror", None) or str(error)
    return InputError(f"cannot be read ({reason})", file=path, remedy=remedy or "check the path and the disk")


def parse_json(text: bytes | str) -> Any:
    """Parse JSON strictly: each name once in an object, no NaN, no infinity, not nested too deeply.

    Raises:
        ValueError: the text is not such JSON.

    Example:
        >>> parse_json('{"a": 1, "a": 2}')
        Traceback (most recent call last):
            ...
        ValueError: the name 'a' occurs twice
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")

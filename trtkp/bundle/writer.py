"""Write a bundle so that it is there whole or not at all.

Files go to a hidden sibling of the target, are flushed to disk and hashed, and the sibling is renamed at the end; what
stood there before is replaced only then. A lock beside the target keeps a second build out, and belongs to the process:
whatever kills it frees it. The next build sweeps up what a killed one left.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
from collections.abc import Callable
from glob import escape
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from filelock import FileLock, Timeout
from pydantic import BaseModel

from trtkp.bundle.manifest import MANIFEST, MANIFEST_HASH, FileRecord, hash_line
from trtkp.errors import InputError, JobError, TrtkpError

__all__ = ["BundleWriter", "hash_file"]

Record = TypeVar("Record", bound=BaseModel)


def hash_file(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal."""
    digest = sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class BundleWriter:
    """A bundle under construction; a context manager. Without `publish`, nothing remains.

    Args:
        target: where the bundle is to be.

    Raises:
        InputError: the target exists and is not a bundle, or its parent cannot be written.
        JobError: another build is writing to it, or the disk is full.
    """

    def __init__(self, target: Path) -> None:
        self.target = Path(os.path.abspath(target))  # noqa: PTH100 - resolve() would follow a link at the target
        self._lock = FileLock(self.target.with_name(f".{self.target.name}.lock"), timeout=0)
        self.staging = self.target.with_name(f".{self.target.name}.building-{os.getpid()}")

    def __enter__(self) -> Self:
        check_replaceable(self.target)
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout:
            raise JobError(
                "another build is writing here", file=self.target, remedy="wait for it, or choose another -o"
            ) from None
        except OSError as error:
            raise InputError(
                f"cannot be written ({error.strerror or error})", file=self.target, remedy="choose another -o"
            ) from None
        try:
            self._sweep()
            self.staging.mkdir()
        except OSError as error:
            self._release()
            raise JobError(f"cannot be written ({error.strerror or error})", file=self.target) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.staging, ignore_errors=True)
        self._release()
        # libraries report a full disk in exceptions of their own
        if error is not None and not isinstance(error, TrtkpError) and (reason := _write_error(error)):
            remedy = "free some space" if _is_full(error) else "choose another -o"
            raise JobError(
                f"could not be written ({reason}), nothing was changed", file=self.target, remedy=remedy
            ) from error

    def publish(self, make_manifest: Callable[[dict[str, FileRecord]], Record]) -> Record:
        """Hash every file in `staging`, write the manifest, and put the bundle in its place.

        Args:
            make_manifest: given the record of every file, gives the manifest.
        """
        records = {}
        for path in sorted(self.staging.iterdir()):
            _flush(path)
            records[path.name] = FileRecord(sha256=hash_file(path), bytes=path.stat().st_size)
        manifest = make_manifest(records)
        text = (manifest.model_dump_json(indent=1) + "\n").encode()
        for name, content in ((MANIFEST, text), (MANIFEST_HASH, hash_line(text))):
            path = self.staging / name
            path.write_bytes(content)
            _flush(path)
        _flush(self.staging)
        self._swap()
        return manifest

    def _swap(self) -> None:
        """Put the staging directory in the target's place; what stood there goes last.

        Where the system can exchange two directories in one step, a bundle stands at the target at every moment.
        Elsewhere the old one steps aside, and `_sweep` knows it by its name.
        """
        check_replaceable(self.target)
        if self.target.exists() and exchange(self.staging, self.target):
            _flush(self.target.parent)
            return  # the old bundle is the staging directory now, and goes with it
        old = self.staging.with_name(f".{self.target.name}.replaced-{os.getpid()}")
        if self.target.exists():
            self.target.rename(old)
        try:
            self.staging.rename(self.target)
        except OSError:
            if old.exists():
                old.rename(self.target)
            raise
        _flush(self.target.parent)
        shutil.rmtree(old, ignore_errors=True)

    def _sweep(self) -> None:
        """Remove what killed builds left. An old bundle that stepped aside comes back if nothing took its place."""
        hidden = escape(f".{self.target.name}.")
        for leftover in self.target.parent.glob(f"{hidden}replaced-*"):
            if self.target.exists():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.rename(self.target)
        for leftover in self.target.parent.glob(f"{hidden}building-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _release(self) -> None:
        # removed while held: whoever opened it meanwhile waits on a file that is gone, and FileLock notices
        Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()


def check_replaceable(target: Path) -> None:
    """Only a bundle, an empty directory or nothing may be where a bundle is to be written.

    A bundle with files that its manifest does not name is refused too: replacing it would lose them.

    Raises:
        InputError: something else is there.
    """
    try:
        if target.is_symlink() or (target.exists() and not target.is_dir()):
            raise InputError("exists and is not a directory", file=target, remedy="choose another -o")
        found = {path.name for path in target.iterdir()} if target.exists() else set()
    except OSError as error:
        raise InputError(
            f"cannot be written ({error.strerror or error})", file=target, remedy="choose another -o"
        ) from None
    if not found:
        return
    own = _own_files(target)
    if own is None:
        raise InputError("exists and is not a trtkp bundle", file=target, remedy="choose another -o, or remove it")
    if foreign := sorted(found - own):
        raise InputError(
            f"is a bundle that holds a file of another origin, {foreign[0]}",
            file=target,
            remedy="move it out, or choose another -o",
        )


def exchange(one: Path, other: Path) -> bool:
    """Exchange two paths in one step (Linux, ``renameat2``); False where the system or file system cannot."""
    here, flag_exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), flag_exchange) == 0)


def _own_files(directory: Path) -> set[str] | None:
    """Names of a bundle's files by its manifest, be it of another version or damaged elsewhere; None: no bundle."""
    try:
        manifest = json.loads((directory / MANIFEST).read_bytes())
        if not str(manifest["format"]).startswith("trtkp."):
            return None
        return {MANIFEST, MANIFEST_HASH, *manifest["files"]}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _write_error(error: BaseException) -> str | None:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if type(error).__name__ == "SafetensorError":
        return str(error)
    return None


def _is_full(error: BaseException) -> bool:
    """No space, no quota or a file size limit; libraries that hide the number say it in words."""
    number = error.errno if isinstance(error, OSError) else None
    if number is not None:
        return number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return "os error 28" in str(error) or "os error 27" in str(error) or "os error 122" in str(error)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

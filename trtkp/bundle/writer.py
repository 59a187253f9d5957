"""Write a bundle atomically: the target is the complete new bundle, or what was there before.

Files are written to a hidden directory beside the target, flushed to disk and hashed. Only then is that directory
renamed to the target. A lock file beside the target keeps a second build out; the operating system frees the lock when
the process ends, however it ends. The next build removes what a killed one left behind.
"""

from __future__ import annotations

import ctypes
import errno
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
from trtkp.files import check_folder, flush, give_usual_modes, is_full, parse_json, read_file, reading, unwritable

__all__ = ["BundleWriter", "hash_file"]

Record = TypeVar("Record", bound=BaseModel)


def hash_file(path: Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    digest = sha256()
    with reading(path), path.open("rb") as file:
        while block := file.read(1 << 20):  # 1 MiB at a time: engines can be gigabytes large
            digest.update(block)
    return digest.hexdigest()


class BundleWriter:
    """A bundle under construction, as a context manager.

    Write files into ``staging``, then call `publish`. If the block is left without `publish`, nothing remains and the
    target is unchanged.

    Args:
        target: the directory the bundle will become.

    Raises:
        InputError: the target exists and is not a bundle, or its parent cannot be written.
        JobError: another build is writing to the target, or the disk is full.
    """

    def __init__(self, target: Path) -> None:
        self.target = Path(os.path.abspath(target))  # noqa: PTH100 - resolve() would follow a link at the target
        check_replaceable(target)
        # timeout=0: a second build fails at once, instead of waiting for minutes and then replacing the first's bundle
        self._lock = FileLock(self.target.with_name(f".{self.target.name}.lock"), timeout=0)
        self.staging = self.target.with_name(f".{self.target.name}.building-{os.getpid()}")

    def __enter__(self) -> Self:
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
        if error is not None and not isinstance(error, TrtkpError) and self._is_of_a_write(error):
            raise unwritable(error, self.target, note="; nothing was changed") from error

    def publish(self, make_manifest: Callable[[dict[str, FileRecord]], Record]) -> Record:
        """Hash every file in ``staging``, write the manifest, and rename the directory to the target.

        Args:
            make_manifest: makes the manifest from the hash and size of every file, by file name.

        Returns:
            The manifest that was written.
        """
        give_usual_modes(self.staging)
        records = {}
        for path in sorted(self.staging.iterdir()):
            flush(path)  # before the rename: otherwise a power failure could leave the new name with empty files
            records[path.name] = FileRecord(sha256=hash_file(path), bytes=path.stat().st_size)
        manifest = make_manifest(records)
        text = (manifest.model_dump_json(indent=1) + "\n").encode()
        for name, content in ((MANIFEST, text), (MANIFEST_HASH, hash_line(text))):
            path = self.staging / name
            path.write_bytes(content)
            flush(path)
        flush(self.staging)  # of a directory, fsync makes the names of its files durable
        self._swap()
        return manifest

    def _swap(self) -> None:
        """Rename the staging directory to the target, and delete the old bundle last.

        Where the system can exchange two directories in one step, there is a bundle at the target at every moment.
        Elsewhere the old bundle is first renamed to ``.NAME.replaced-PID``. If the process dies in between, `_sweep` of
        the next build renames it back.
        """
        check_replaceable(self.target)  # again: somebody may have put files there while the build ran
        if self.target.exists() and exchange(self.staging, self.target):
            flush(self.target.parent)
            return  # the staging directory is now the old bundle; __exit__ deletes it
        old = self.staging.with_name(f".{self.target.name}.replaced-{os.getpid()}")
        if self.target.exists():
            self._set_aside(old)
        try:
            self.staging.rename(self.target)
        except OSError:
            if old.exists():  # put the old bundle back, so that a failed build changes nothing
                old.rename(self.target)
            raise
        flush(self.target.parent)
        shutil.rmtree(old, ignore_errors=True)

    def _set_aside(self, old: Path) -> None:
        try:
            self.target.rename(old)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            # an overlay, as in a container, cannot rename a folder that comes from its image
            shutil.copytree(self.target, old)
            shutil.rmtree(self.target)

    def _is_of_a_write(self, error: BaseException) -> bool:
        """Whether an error means that the bundle cannot be written. Errors about other files are not ours to explain.

        Libraries report a full disk in exceptions of their own, so the type alone does not tell.
        """
        if isinstance(error, OSError) and error.filename is not None:
            file = Path(os.fsdecode(error.filename)).absolute()
            return is_full(error) or file in (self.target, self.target.parent) or file.is_relative_to(self.staging)
        return isinstance(error, OSError) or type(error).__name__ == "SafetensorError" or is_full(error)

    def _sweep(self) -> None:
        """Remove what killed builds left; put an old bundle back if its build died before the new one was in place."""
        hidden = escape(f".{self.target.name}.")
        for leftover in self.target.parent.glob(f"{hidden}replaced-*"):
            if self.target.exists():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.rename(self.target)
        for leftover in self.target.parent.glob(f"{hidden}building-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _release(self) -> None:
        # Delete the lock file while the lock is held. A process that opened it meanwhile holds a deleted file, which
        # FileLock detects. Deleting it after the release could delete the next owner's lock.
        Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()


def check_replaceable(target: Path) -> None:
    """Check that a bundle may be written here: the target is a bundle, an empty directory, or does not exist.

    A bundle with files that its manifest does not list is refused, because replacing it would delete them.

    Raises:
        InputError: something else is there, or nothing can be written there.
    """
    check_folder(target)
    with reading(target):
        found = {path.name for path in target.iterdir()} if target.exists() else set()
    if not found:
        return
    own = _own_files(target)
    if own is None:
        raise InputError("exists and is not a trtkp bundle", file=target, remedy="choose another -o, or remove it")
    if foreign := sorted(found - own):
        raise InputError(
            f"is a bundle with a file that its manifest does not list, {foreign[0]}",
            file=target,
            remedy="move that file elsewhere, or choose another -o",
        )


def exchange(one: Path, other: Path) -> bool:
    """Exchange two paths in one step; False where the system or the file system cannot.

    This is Linux's ``renameat2`` with ``RENAME_EXCHANGE``, which Python's ``os`` module does not offer.
    """
    here, flag_exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux's headers
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), flag_exchange) == 0)


def _own_files(directory: Path) -> set[str] | None:
    """Names of the files that a bundle's manifest lists; None where there is no bundle.

    The manifest is read leniently: a bundle of another version, or a damaged one, may be replaced as well.
    """
    try:
        manifest = parse_json(read_file(directory / MANIFEST))
        if not str(manifest["format"]).startswith("trtkp."):
            return None
        return {MANIFEST, MANIFEST_HASH, *manifest["files"]}
    except (InputError, ValueError, LookupError, TypeError):
        return None

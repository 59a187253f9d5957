"""The measurements of a search under way, in a hidden folder beside its output, so that a killed search resumes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout

from trtkp.errors import JobError
from trtkp.files import unwritable, write_file

__all__ = ["State"]


class State:
    """Measured values by name. Each is written to disk at once, and a lock keeps a second search away.

    Use it as a context manager. When the context ends without an error, the search is complete and the state is
    removed.

    Args:
        output: the directory that the search will write; the state lies beside it.
        key: a hash of everything that the values depend on. Values that were stored under another key are dropped.

    Raises:
        JobError: on entry, another search for this output is under way; or the state cannot be written.
    """

    def __init__(self, output: Path, key: str) -> None:
        output = output.absolute()
        self.folder = output.with_name(f".{output.name}.searching")
        self._output, self._key = output, key
        self._lock = FileLock(output.with_name(f".{output.name}.searching.lock"), timeout=0)
        self._values: dict[str, Any] = {}

    def __enter__(self) -> Self:
        try:
            self._lock.acquire()
            read = self._read()
            if read is None:
                shutil.rmtree(self.folder, ignore_errors=True)
                self.folder.mkdir()
            self._values = read or {}
        except Timeout:
            raise JobError(
                "another search is writing here", file=self._output, remedy="wait for it, or choose another -o"
            ) from None
        except OSError as error:
            raise unwritable(error, self.folder) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:  # the search is complete; after an error the state stays, for the next attempt
            shutil.rmtree(self.folder, ignore_errors=True)
        Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()

    @property
    def journal(self) -> Path:
        """Optuna's journal file for the trials."""
        return self.folder / "trials.log"

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._values[name] = value
        write_file(self._file, json.dumps({"key": self._key, "values": self._values}))

    @property
    def _file(self) -> Path:
        return self.folder / "tables.json"

    def _read(self) -> dict[str, Any] | None:
        try:
            read = json.loads(self._file.read_text())
        except (OSError, ValueError, RecursionError):
            return None
        fits = isinstance(read, dict) and read.get("key") == self._key and isinstance(read.get("values"), dict)
        return read["values"] if fits else None

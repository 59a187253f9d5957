"""Times of TensorRT's tactics, kept from one build to the next: a file for each library, version and GPU.

A cache of another GPU or version is refused by TensorRT or, worse, believed; so the file's name tells them apart. It is
editable where the library knows how: keys can be read and a tactic pinned with TensorRT's own interface.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

from filelock import FileLock

from trtkp.engine.trt.log import Log
from trtkp.machine.gpu import find_gpus

__all__ = ["TimingCacheFile", "cache_name"]


def cache_name(trt: Any, gpu: str | None = None) -> str:
    """File name for a library, its version and a GPU; None for the first GPU here."""
    if gpu is None:
        gpus = find_gpus().gpus
        gpu = f"{gpus[0].name}-{gpus[0].sm}" if gpus else "any"
    plain = re.sub(r"[^A-Za-z0-9.]+", "-", f"{trt.__name__}-{trt.__version__}-{gpu}")
    return f"{plain.strip('-').lower()}.tactics"


class TimingCacheFile:
    """The cache of one build: taken from a folder, given back with what is new.

    A file that cannot be used costs time and nothing else, so it is a warning.
    """

    def __init__(self, trt: Any, config: Any, folder: Path, log: Log) -> None:
        self._config, self._log = config, log
        self.path = folder / cache_name(trt)
        flags = trt.BuilderFlag
        if hasattr(flags, "EDITABLE_TIMING_CACHE"):
            config.set_flag(flags.EDITABLE_TIMING_CACHE)
        self._attach(self._read())

    def save(self) -> None:
        """Write the times of this build, and those that others wrote meanwhile."""
        cache = self._config.get_timing_cache()
        if cache is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.path}.lock"):
                found = self._read()
                other = self._config.create_timing_cache(found) if found else None
                if other is not None:
                    cache.combine(other, ignore_mismatch=False)
                _write(self.path, bytes(memoryview(cache.serialize())))
        except OSError as error:
            self._log("warning", f"timing cache: {self.path} cannot be written ({error.strerror})")

    def _attach(self, content: bytes) -> None:
        cache = self._config.create_timing_cache(content)
        if cache is None or not self._config.set_timing_cache(cache, ignore_mismatch=False):
            self._log("warning", f"timing cache: {self.path} cannot be used, every tactic is timed anew")
            empty = self._config.create_timing_cache(b"")
            if empty is not None:
                self._config.set_timing_cache(empty, ignore_mismatch=False)

    def _read(self) -> bytes:
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            self._log("warning", f"timing cache: {self.path} cannot be read ({error.strerror})")
            return b""


def _write(path: Path, content: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)

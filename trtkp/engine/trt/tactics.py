"""TensorRT's timing cache, kept from one build to the next in one file per library, version and GPU.

TensorRT refuses a cache of another GPU or version or, worse, uses its times. Library, version and GPU are therefore
part of the file's name. Where the library supports it the cache is editable: TensorRT's own interface can read its keys
and pin a tactic.
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
    """Name of the cache file for a library, its version and a GPU (None: the first GPU of this machine).

    Example:
        >>> from types import SimpleNamespace
        >>> cache_name(SimpleNamespace(__name__="tensorrt", __version__="10.9.0"), "NVIDIA H200-sm90")
        'tensorrt-10.9.0-nvidia-h200-sm90.tactics'
    """
    if gpu is None:
        gpus = find_gpus().gpus
        gpu = f"{gpus[0].name}-{gpus[0].sm}" if gpus else "any"
    plain = re.sub(r"[^A-Za-z0-9.]+", "-", f"{trt.__name__}-{trt.__version__}-{gpu}")
    return f"{plain.strip('-').lower()}.tactics"


class TimingCacheFile:
    """The timing cache of one build: read when the build begins, written back by `save`.

    A cache file that cannot be used only makes the build slower, so it is a warning and not an error.

    Args:
        trt: the imported module.
        config: the builder's configuration, to which the cache is attached.
        folder: directory of the cache files.
        log: called with warnings.
    """

    def __init__(self, trt: Any, config: Any, folder: Path, log: Log) -> None:
        self._config, self._log = config, log
        self.path = folder / cache_name(trt)
        flags = trt.BuilderFlag
        if hasattr(flags, "EDITABLE_TIMING_CACHE"):
            config.set_flag(flags.EDITABLE_TIMING_CACHE)
        self._attach(self._read())

    def save(self) -> None:
        """Merge this build's times with those that other builds wrote meanwhile, and write the file."""
        cache = self._config.get_timing_cache()
        if cache is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Another build may have added times since this one read the file: read it again under the lock and merge.
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
            self._log("warning", f"timing cache: {self.path} cannot be used, so every tactic is timed again")
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

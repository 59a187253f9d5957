"""TensorRT's timing cache, kept from one build to the next in one file per library, version and GPU.

TensorRT refuses a cache of another GPU or version or, worse, uses its times. Library, version and GPU are therefore
part of the file's name. So is whether sparse kernels were timed: a build that may not use them must not find theirs to
be the fastest. Where the library supports it the cache is editable: TensorRT's own interface can read its keys
and pin a tactic.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from trtkp.engine.trt.log import Log
from trtkp.machine.caches import read_cache, set_aside, write_cache
from trtkp.machine.gpu import find_gpus

__all__ = ["TimingCacheFile", "cache_name"]

#: Most bytes that are read of a cache: the JIT-compiled code of a large net takes some hundred MiB.
_MOST_BYTES = 1 << 30
#: Longest wait for another build that writes the same cache, which takes it milliseconds.
_LOCK_S = 10.0
#: The exceptions of TensorRT's Python bindings.
_REFUSALS = (RuntimeError, TypeError, ValueError)


def cache_name(trt: Any, gpu: str | None = None, *, sparse: bool = False) -> str:
    """Name of the cache file for a library, its version and a GPU (None: the first that this process sees).

    ``sparse`` says whether kernels for 2:4 weights are timed too.

    Example:
        >>> from types import SimpleNamespace
        >>> cache_name(SimpleNamespace(__name__="tensorrt", __version__="10.9.0"), "NVIDIA H200-sm90")
        'tensorrt-10.9.0-nvidia-h200-sm90.tactics'
    """
    if gpu is None:
        gpus = find_gpus().gpus
        gpu = f"{gpus[0].name}-{gpus[0].sm}" if gpus else "any"
    kernels = "-sparse" if sparse else ""
    plain = re.sub(r"[^A-Za-z0-9.]+", "-", f"{trt.__name__}-{trt.__version__}-{gpu}{kernels}")
    return f"{plain.strip('-').lower()}.tactics"


class TimingCacheFile:
    """The timing cache of one build: read when the build begins, written back by `save`.

    Whatever is wrong with the file, its lock or its directory makes the build slower and costs one warning each: it is
    never an error, and never waits long.

    Args:
        trt: the imported module.
        config: the builder's configuration, to which the cache is attached.
        folder: directory of the cache files.
        log: called with warnings.
        sparse: whether kernels for 2:4 weights are timed too.
    """

    def __init__(self, trt: Any, config: Any, folder: Path, log: Log, *, sparse: bool = False) -> None:
        self._config, self._log = config, log
        self._told: set[str] = set()
        self.path = folder / cache_name(trt, sparse=sparse)
        flags = trt.BuilderFlag
        if hasattr(flags, "EDITABLE_TIMING_CACHE"):
            config.set_flag(flags.EDITABLE_TIMING_CACHE)
        content = self._read()
        if self._attach(content):
            return
        if content:
            self._tell(f"cannot be used and was {set_aside(self.path)}, so every tactic is timed again")
        if not content or not self._attach(b""):
            self._tell("TensorRT makes none, so every tactic is timed")

    def save(self) -> None:
        """Merge this build's times with those that other builds wrote meanwhile, and write the file."""
        try:
            cache = self._config.get_timing_cache()
            if cache is None:
                return
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._locked():
                # Another build may have added times since this one read the file: read it again and merge.
                self._merge(cache, self._read())
                content = cache.serialize()
                if content is not None and memoryview(content).nbytes <= _MOST_BYTES:  # what a build would read
                    write_cache(self.path, bytes(memoryview(content)))
        except OSError as error:
            self._tell(f"cannot be written ({error.strerror})")
        except _REFUSALS as error:
            self._tell(f"cannot be written ({error})")

    def _attach(self, content: bytes) -> bool:
        try:
            cache = self._config.create_timing_cache(content)
            return cache is not None and bool(self._config.set_timing_cache(cache, ignore_mismatch=False))
        except _REFUSALS:
            return False

    def _merge(self, cache: Any, content: bytes) -> None:
        if not content:
            return
        try:
            other = self._config.create_timing_cache(content)
            merged = other is not None and cache.combine(other, ignore_mismatch=False)
        except _REFUSALS:
            merged = False
        if not merged:
            self._tell(f"cannot be combined with this build's times and was {set_aside(self.path)}")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other builds from writing. Without the lock, the last of two builds wins, and no file is damaged."""
        lock = FileLock(f"{self.path}.lock", timeout=_LOCK_S)
        try:
            lock.acquire()
        except Timeout:
            self._tell(f"its lock was held for {_LOCK_S:.0f} s, so it is written without")
        except OSError as error:
            self._tell(f"cannot be locked ({error.strerror}), so it is written without")
        try:
            yield
        finally:
            lock.release()

    def _read(self) -> bytes:
        try:
            return read_cache(self.path, _MOST_BYTES)
        except FileNotFoundError:
            return b""
        except OSError as error:
            self._tell(f"cannot be read ({error.strerror})")
        except ValueError as error:
            self._tell(f"cannot be used ({error}) and was {set_aside(self.path)}")
        return b""

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._log("warning", f"timing cache: {self.path} {text}")

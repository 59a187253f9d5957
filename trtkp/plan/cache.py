"""The timing cache: measured times of layers, kept on disk from one build to the next.

One entry holds one race: the structures that were timed against each other, and the time of each. The file name is a
hash of the machine, the library versions and the structures, so an entry can never be mistaken for another machine's or
another layer's. Unusable files are set aside, reported once and re-measured. Beyond `MAX_ENTRIES` the oldest files are
evicted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from math import isfinite
from pathlib import Path

import platformdirs

from trtkp.machine.caches import read_cache, set_aside, write_cache
from trtkp.machine.cpu import cpu_name, usable_cores
from trtkp.machine.timing import Timing

__all__ = ["DIRECTORY_VARIABLE", "MAX_ENTRIES", "TimingCache", "machine"]

#: The environment variable that moves the cache.
DIRECTORY_VARIABLE = "TRTKP_CACHE_DIR"
#: A file has about one kilobyte, so a full cache takes about 4 MB.
MAX_ENTRIES = 4096
#: Most bytes that are read of one file: a thousand times as many as a race of five lowerings takes.
_MOST_BYTES = 1 << 20
#: Part of every file's hash: raise it when the meaning of the times changes, and old files are never found again.
_VERSION = 1


class TimingCache:
    """Measured times of one machine, in memory and on disk.

    Attributes:
        problems: messages for the user about files that could not be read or written.

    Args:
        directory: where the files are. None takes ``TRTKP_CACHE_DIR``, or else the user's cache directory.

    Example:
        >>> from trtkp.machine.timing import Timing
        >>> cache = TimingCache.in_memory()
        >>> cache.put({"dense": Timing(1.0, 0.9, 1.2, runs=30)}, threads=2)
        >>> cache.get(["dense"], threads=2)["dense"].median_ms
        1.0
        >>> cache.get(["dense"], threads=4) is None
        True
    """

    def __init__(self, directory: Path | None = None) -> None:
        self.directory: Path | None = directory if directory is not None else _default_directory()
        self.problems: list[str] = []
        self._races: dict[str, dict[str, Timing]] = {}

    @classmethod
    def in_memory(cls) -> TimingCache:
        """A cache without files: it forgets everything when it is deleted."""
        cache = cls(Path())
        cache.directory = None
        return cache

    def get(
        self, structures: Collection[str], threads: int | None, where: str | None = None
    ) -> dict[str, Timing] | None:
        """Times by structure, or None if these structures were never timed against each other.

        Times from different races are not combined: each race met its own clock speed and background load.

        Args:
            structures: hashes from `trtkp.plan.race.structure`.
            threads: of ONNX Runtime; None for all usable cores.
            where: identity of the GPU target that ran them; None for this machine's CPU.
        """
        key = _key(structures, threads, where)
        if key not in self._races and self.directory is not None:
            file = self.directory / f"{key}.json"
            try:
                self._races[key] = _read(file, structures)
            except FileNotFoundError:
                return None
            except OSError as error:
                self._tell(f"timing cache: {self.directory} cannot be read ({error.strerror})")
            except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
                done = set_aside(file)
                self._tell(f"timing cache: {file} cannot be used and was {done}, its layer is timed again")
        return self._races.get(key)

    def put(self, times: Mapping[str, Timing], threads: int | None, where: str | None = None) -> None:
        """Store the times of one race. A directory that cannot be written is reported in `problems`, not raised."""
        key = _key(times, threads, where)
        self._races[key] = dict(times)
        if self.directory is None:
            return
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            text = json.dumps({name: asdict(time) for name, time in times.items()})
            write_cache(self.directory / f"{key}.json", text.encode())
            _forget_oldest(self.directory)
        except OSError as error:
            self._tell(f"timing cache: {self.directory} cannot be written ({error.strerror})")

    def _tell(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)


def _key(structures: Collection[str], threads: int | None, where: str | None) -> str:
    place = (machine(), threads or usable_cores()) if where is None else (where,)
    text = repr((_VERSION, *place, sorted(structures)))
    return sha256(text.encode()).hexdigest()


def _read(file: Path, structures: Collection[str]) -> dict[str, Timing]:
    entry = json.loads(read_cache(file, _MOST_BYTES))
    times = {
        name: Timing(
            float(values["median_ms"]), float(values["p10_ms"]), float(values["p90_ms"]), runs=int(values["runs"])
        )
        for name, values in entry.items()
    }
    if set(times) != set(structures) or not all(_plausible(time) for time in times.values()):
        raise ValueError("not the times of these structures")
    return times


def _plausible(time: Timing) -> bool:
    """Whether a time can have been measured. Python's JSON takes Infinity and NaN."""
    return 0 < time.p10_ms <= time.median_ms <= time.p90_ms and isfinite(time.p90_ms) and time.runs > 0


def _forget_oldest(directory: Path) -> None:
    ages = []
    for entry in os.scandir(directory):
        with suppress(FileNotFoundError):  # another process may evict files at the same time
            if entry.name.endswith((".json", ".json.bad")) and not entry.is_dir(follow_symlinks=False):
                ages.append((entry.stat(follow_symlinks=False).st_mtime, entry.path))
    if len(ages) > MAX_ENTRIES:
        # Down to three quarters at once, so that not every later entry has to evict one.
        for _, path in sorted(ages)[: len(ages) - MAX_ENTRIES * 3 // 4]:
            Path(path).unlink(missing_ok=True)


def _default_directory() -> Path:
    moved = os.environ.get(DIRECTORY_VARIABLE)
    return Path(moved) if moved else platformdirs.user_cache_path("trtkp") / "timings"


@cache
def machine() -> tuple[str, int, str]:
    """What times depend on besides the graph: CPU model, usable cores, version of ONNX Runtime."""
    return cpu_name(), usable_cores(), version("onnxruntime")

"""What a build was asked for, and the phases that it goes through."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from trtkp.engine import Backend
from trtkp.engine.options import TrtOptions
from trtkp.errors import JobError, TrtkpError, is_out_of_memory
from trtkp.pipeline.options import BuildOptions

__all__ = ["Job", "Phases", "Progress", "SinglePhase", "TimedPhases"]

_DOING = {
    "load": "loading the model",
    "prune": "pruning",
    "rewrite": "rewriting the graph",
    "plan": "planning",
    "calibrate": "calibrating",
    "check": "checking the graphs",
    "build": "building the engine",
    "accuracy": "measuring accuracy",
}

#: Called with a phase, the steps done and the steps in all.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Job:
    """What every step of a build needs to know.

    Attributes:
        path: the model file or bundle that the build starts from; errors that name no file get this one.
        output: directory of the bundle.
        backend: the one that builds the engine.
        options: of the build.
        progress: called as phases go on.
    """

    path: Path
    output: Path
    backend: Backend
    options: BuildOptions
    progress: Progress | None = None

    @property
    def tensorrt(self) -> TrtOptions:
        """The options of TensorRT's builder, with the folder where the times of its tactics are kept."""
        from trtkp.plan.cache import TimingCache

        given = self.options.tensorrt
        if given.timing_cache is not None or not self.options.timing_cache:
            return given
        return replace(given, timing_cache=TimingCache().directory)


def _explain_memory(error: Exception, phase: str, path: Path) -> None:
    """Raise a `JobError` that names the phase if memory did not suffice for it."""
    if is_out_of_memory(error):
        raise JobError(
            f"out of memory while {_DOING.get(phase, phase)}",
            file=path,
            remedy="a build needs about three times the memory of the weights: free some, or raise the limit",
        ) from error


class Phases(ABC):
    """The phases of a build: ``with phases("plan"): ...``."""

    @abstractmethod
    def __call__(self, name: str) -> AbstractContextManager[None]:
        """The context of one phase."""

    @property
    @abstractmethod
    def seconds(self) -> dict[str, float]:
        """Seconds that each phase took, for the manifest."""


class TimedPhases(Phases):
    """Every phase is reported and timed, and its errors name a file that the user has.

    An error without a file, or about a file of the unfinished bundle, is raised again with the model's file.

    Args:
        job: the build.
        staging: directory of the unfinished bundle, which is removed when a phase fails.
    """

    def __init__(self, job: Job, staging: Path) -> None:
        self._job, self._staging = job, staging
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """See `Phases`."""
        progress = self._job.progress
        if progress is not None:
            progress(name.capitalize(), 0, 1)
        start = time.perf_counter()
        try:
            yield
        except TrtkpError as error:
            # an error about an option says so in its message and has no file
            unnamed = error.file is None and not error.message.startswith("--")
            staged = error.file is not None and Path(error.file).is_relative_to(self._staging)
            if unnamed or staged:
                raise error.in_file(self._job.path) from error
            raise
        except Exception as error:
            _explain_memory(error, name, self._job.path)
            raise
        self._seconds[name] = round(time.perf_counter() - start, 3)
        if progress is not None:
            progress(name.capitalize(), 1, 1)

    @property
    def seconds(self) -> dict[str, float]:
        """See `Phases`."""
        return self._seconds


class SinglePhase(Phases):
    """The whole build counts as one phase.

    A build that starts from a bundle adds one phase to those in the bundle's manifest.

    Args:
        name: of the phase.
        path: the bundle, for the error where memory does not suffice.
    """

    def __init__(self, name: str, path: Path) -> None:
        self._name, self._path, self._start = name, path, time.perf_counter()

    def __call__(self, name: str) -> AbstractContextManager[None]:
        """See `Phases`."""
        return self._checked(name)

    @contextmanager
    def _checked(self, name: str) -> Iterator[None]:
        try:
            yield
        except TrtkpError:
            raise
        except Exception as error:
            _explain_memory(error, name, self._path)
            raise

    @property
    def seconds(self) -> dict[str, float]:
        """See `Phases`."""
        return {self._name: round(time.perf_counter() - self._start, 3)}

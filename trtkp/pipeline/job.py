"""What a build was asked for, and the phases that it goes through."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from trtkp.engine import Backend
from trtkp.engine.options import TrtOptions
from trtkp.errors import TrtkpError
from trtkp.pipeline.options import BuildOptions

__all__ = ["Job", "Phases", "Progress", "SinglePhase", "TimedPhases"]

#: Called with a phase, the steps done and the steps in all.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Job:
    """What all steps of a build are told.

    Attributes:
        path: the model file or bundle that it starts from; errors that name no file are about this one.
        output: directory of the bundle.
        backend: that of the options, chosen.
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


class Phases(ABC):
    """The phases of a build: ``with phases("plan"): ...``."""

    @abstractmethod
    def __call__(self, name: str) -> AbstractContextManager[None]:
        """A context in which that phase is done."""

    @property
    @abstractmethod
    def seconds(self) -> dict[str, float]:
        """Seconds that each phase took, for the manifest."""


class TimedPhases(Phases):
    """Every phase is reported and timed. An error in it that names no file, or one that goes with it, names the model.

    Args:
        job: see there.
        staging: folder of the bundle under construction; it is removed when a phase fails.
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
        self._seconds[name] = round(time.perf_counter() - start, 3)
        if progress is not None:
            progress(name.capitalize(), 1, 1)

    @property
    def seconds(self) -> dict[str, float]:
        """See `Phases`."""
        return self._seconds


class SinglePhase(Phases):
    """The whole build counts as one phase.

    What starts from a bundle is one more phase of the build that made the bundle, whose manifest has the other times.
    """

    def __init__(self, name: str) -> None:
        self._name, self._start = name, time.perf_counter()

    def __call__(self, name: str) -> AbstractContextManager[None]:
        """See `Phases`."""
        return nullcontext()

    @property
    def seconds(self) -> dict[str, float]:
        """See `Phases`."""
        return {self._name: round(time.perf_counter() - self._start, 3)}

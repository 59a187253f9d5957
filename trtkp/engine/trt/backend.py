"""What the backends ``tensorrt`` and ``tensorrt-rtx`` share: engines opened and profiled in this process."""

from __future__ import annotations

import importlib
import os
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np

from trtkp.engine.base import Backend, EngineProfile, Runner
from trtkp.engine.options import RunOptions
from trtkp.engine.trt.latency import EngineLatency, measure_latency
from trtkp.engine.trt.runner import TrtEngineRunner
from trtkp.errors import InputError, NotRunnableError

__all__ = ["TrtBackend"]

_ALLOW_HOST_CODE = "TRTKP_ALLOW_HOST_CODE"


class TrtBackend(Backend):
    """Engines of either library; *unverified* on a GPU: none was at hand."""

    artefact: ClassVar[str] = "model.engine"
    compiles: ClassVar[bool] = True
    #: As people write it.
    title: ClassVar[str]

    @abstractmethod
    def _why_not_run(self) -> str | None:
        """Why no engine runs on this machine."""

    @abstractmethod
    def _module(self) -> str:
        """Name of the module that opens engines."""

    def _plugins(self) -> Path | None:
        """Library of the plugins that an engine may need."""
        return None

    def open(self, path: Path, *, threads: int | None = None, options: RunOptions | None = None) -> TrtEngineRunner:
        """Deserialise an engine on the first GPU; ``threads`` mean nothing to it.

        ``TRTKP_ALLOW_HOST_CODE=1`` in the environment is ``allow_host_code`` of every engine.

        Raises:
            InputError: no such file.
            NotRunnableError: no package, or no GPU that takes it.
            JobError: the library refused the engine; with its own words.
        """
        if not path.is_file():
            raise InputError("no such file", file=path)
        if (reason := self._why_not_run()) is not None:
            raise NotRunnableError(f"{self.title} cannot open the engine here: {reason}", file=path)
        options = options or RunOptions()
        if os.environ.get(_ALLOW_HOST_CODE) == "1":
            options = replace(options, allow_host_code=True)
        module = importlib.import_module(self._module())
        return TrtEngineRunner(path, module, options=options, plugins=self._plugins())

    def gpu_latency(
        self, runner: Runner, feeds: Mapping[str, np.ndarray], *, batch: int, seconds: float
    ) -> tuple[EngineLatency, ...]:
        """Without CUDA graphs, and with them where the engine can be captured."""
        assert isinstance(runner, TrtEngineRunner)
        return tuple(
            measure_latency(partial(runner.timed, feeds, graphs=graphs), graphs=graphs, batch=batch, seconds=seconds)
            for graphs in (False, True)
            if not graphs or runner.why_no_graphs is None
        )

    def profile(
        self, path: Path, feeds: Mapping[str, np.ndarray], *, threads: int | None = None, runs: int = 20
    ) -> EngineProfile:
        """Median time of every layer, by TensorRT's own profiler.

        Raises:
            NotRunnableError: it cannot run on this machine.
        """
        with self.open(path) as runner:
            return runner.profile(feeds, runs)

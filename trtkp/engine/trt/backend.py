"""The base class of the backends ``tensorrt`` and ``tensorrt-rtx``: opens and profiles engines in this process."""

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
from trtkp.engine.latency import EngineLatency
from trtkp.engine.options import RunOptions
from trtkp.engine.trt.latency import measure_latency
from trtkp.engine.trt.runner import TrtEngineRunner
from trtkp.errors import InputError, NotRunnableError

__all__ = ["TrtBackend"]

#: Environment variable for users of the command line, whose commands have no option for it.
_ALLOW_HOST_CODE = "TRTKP_ALLOW_HOST_CODE"


class TrtBackend(Backend):
    """What both libraries have in common.

    *Unverified* on a GPU: none was available to test it. The tests use a device that records its calls.
    """

    artefact: ClassVar[str] = "model.engine"
    compiles: ClassVar[bool] = True
    #: The library's name as NVIDIA writes it, for messages.
    title: ClassVar[str]

    @abstractmethod
    def _why_not_run(self, device: int) -> str | None:
        """Why no engine runs on the GPU of this number; None where engines run."""

    @abstractmethod
    def _module(self) -> str:
        """Name of the Python module that opens engines."""

    def _plugins(self) -> Path | None:
        """Path of the plugin library that an engine may need; None where there is none."""
        return None

    def open(self, path: Path, *, threads: int | None = None, options: RunOptions | None = None) -> TrtEngineRunner:
        """Deserialise an engine on a GPU.

        The environment variable ``TRTKP_ALLOW_HOST_CODE=1`` sets ``allow_host_code`` for every engine.

        Args:
            path: the serialised engine.
            threads: without effect; engines run on the GPU.
            options: contexts, CUDA graphs, host code, refitting and the GPU.

        Raises:
            InputError: the file does not exist.
            NotRunnableError: the package is not installed, or there is no GPU it can run on.
            JobError: the library refused the engine; the message holds the library's own words.
        """
        if not path.is_file():
            raise InputError("no such file", file=path)
        options = options or RunOptions()
        if (reason := self._why_not_run(options.device)) is not None:
            raise NotRunnableError(f"{self.title} cannot open the engine here: {reason}", file=path)
        if os.environ.get(_ALLOW_HOST_CODE) == "1":
            options = replace(options, allow_host_code=True)
        module = importlib.import_module(self._module())
        return TrtEngineRunner(path, module, options=options, plugins=self._plugins())

    def gpu_ms(self, runner: Runner, feeds: Mapping[str, np.ndarray]) -> float:
        """GPU time of one run without CUDA graphs."""
        assert isinstance(runner, TrtEngineRunner)
        return runner.timed(feeds, graphs=False).gpu

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
        self,
        path: Path,
        feeds: Mapping[str, np.ndarray],
        *,
        threads: int | None = None,
        runs: int = 20,
        device: int = 0,
    ) -> EngineProfile:
        """Measure the median time of every layer with TensorRT's own profiler.

        Raises:
            NotRunnableError: the engine cannot run on this machine.
        """
        with self.open(path, options=RunOptions(device=device)) as runner:
            return runner.profile(feeds, runs)

"""The ``tensorrt`` backend: TensorRT 10.x and 11.x. An engine is built on the kind of GPU that will run it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from trtkp.engine.base import Availability, BuildRequest, BuildResult, Progress
from trtkp.engine.trt.backend import TrtBackend
from trtkp.engine.trt.process import build_in_worker
from trtkp.errors import InputError, NotRunnableError
from trtkp.machine.gpu import find_gpus
from trtkp.machine.packages import importable, installed_version

__all__ = ["TensorRTBackend"]

_MODULE = "tensorrt"
#: NVIDIA's small runtime, which runs version-compatible engines where the full package is not installed.
_LEAN = "tensorrt_lean"
_DISTRIBUTIONS = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")
_LEAN_DISTRIBUTIONS = ("tensorrt-lean", "tensorrt-lean-cu13", "tensorrt-lean-cu12")


class TensorRTBackend(TrtBackend):
    """TensorRT, with trtkp's plugins for the layers whose plan says so.

    *Unverified* on a GPU: none was available to test it.
    """

    name: ClassVar[str] = "tensorrt"
    title: ClassVar[str] = "TensorRT"
    takes_plugins: ClassVar[bool] = True
    magic: ClassVar[tuple[bytes, ...]] = (b"ftrt", b"ptrt")
    triton_platform: ClassVar[str] = "tensorrt_plan"

    def availability(self, device: int = 0) -> Availability:
        """Building and running both need an NVIDIA GPU: the builder times its kernels on it."""
        version = installed_version(*_DISTRIBUTIONS)
        reason = self._why_not_build(device)
        if reason is None:
            return Availability(True, True, version, f"TensorRT {version} on {find_gpus().detail}")
        if self._why_not_run(device) is None:
            lean = installed_version(*_LEAN_DISTRIBUTIONS)
            return Availability(False, True, lean, f"the lean runtime {lean} runs but does not build: {reason}")
        return Availability(False, False, version, reason)

    def build(self, request: BuildRequest, progress: Progress | None = None) -> BuildResult:
        """Build on a GPU of this machine, in a worker process.

        Raises:
            InputError: a target other than ``current``, a missing file, or shapes that do not fit.
            NotRunnableError: the package is not installed, or there is no such GPU.
            JobError: TensorRT refused the graph, or the worker died.
        """
        if any(target.lower() != "current" for target in request.targets):
            raise InputError(
                f"targets {', '.join(request.targets)}: TensorRT builds for this machine's GPU only",
                remedy="leave the targets out, or use the backend tensorrt-rtx",
            )
        if (reason := self._why_not_build(request.device)) is not None:
            raise NotRunnableError(f"TensorRT cannot build here: {reason}")
        # TensorRT always builds for the current GPU; its builder has no option to say so.
        return build_in_worker(_MODULE, replace(request, targets=()), self.artefact, progress)

    def _why_not_build(self, device: int) -> str | None:
        if not importable(_MODULE):
            return "package tensorrt is not installed: pip install 'trtkp[tensorrt]'"
        return find_gpus().why_not(device)

    def _why_not_run(self, device: int) -> str | None:
        if not importable(_LEAN):
            return self._why_not_build(device)
        return find_gpus().why_not(device)

    def _module(self) -> str:
        return _MODULE if importable(_MODULE) else _LEAN

    def _plugins(self) -> Path | None:
        from trtkp.kernels.capi import find_library

        try:
            return find_library()
        except InputError:
            return None  # the engine may need no plugins; if it does, TensorRT's error names the missing one

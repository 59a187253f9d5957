"""TensorRT 10.x and 11.x: built on the GPU that will run it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from trtkp.engine.base import (
    Availability,
    Backend,
    BuildRequest,
    BuildResult,
    NotRunnableError,
    Progress,
    Runner,
    importable,
    installed_version,
)
from trtkp.engine.gpu import find_gpus
from trtkp.engine.trt_process import build_in_worker
from trtkp.errors import InputError

__all__ = ["TensorRTBackend"]

_MODULE = "tensorrt"
_DISTRIBUTIONS = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")


class TensorRTBackend(Backend):
    """The graph it builds is the one of standard operators; *unverified*: no GPU was at hand to build on."""

    name: ClassVar[str] = "tensorrt"
    artefact: ClassVar[str] = "model.engine"

    def availability(self) -> Availability:
        """Both building (it times its kernels) and running need an NVIDIA GPU."""
        version = installed_version(*_DISTRIBUTIONS)
        reason = _why_not_here()
        if reason is not None:
            return Availability(False, False, version, reason)
        return Availability(True, True, version, f"TensorRT {version} on {find_gpus().detail}")

    def build(self, request: BuildRequest, progress: Progress | None = None) -> BuildResult:
        """Build in a worker process, for the GPU at hand.

        Raises:
            InputError: targets other than ``current``, no such file, shapes that do not fit.
            NotRunnableError: no package or no GPU.
            JobError: the graph was refused, or the worker died.
        """
        if any(target.lower() != "current" for target in request.targets):
            raise InputError(
                f"targets {', '.join(request.targets)}: TensorRT builds for the GPU at hand",
                remedy="leave the targets out, or use the backend tensorrt-rtx",
            )
        reason = _why_not_here()
        if reason is not None:
            raise NotRunnableError(f"TensorRT cannot build here: {reason}")
        # "current" is what it does anyway, and its builder knows no such word.
        return build_in_worker(_MODULE, replace(request, targets=()), self.artefact, progress)

    def open(self, path: Path, *, threads: int | None = None) -> Runner:
        """Deserialise an engine; *unverified*: no GPU was at hand to run it.

        Raises:
            InputError: no such file.
            NotRunnableError: no package or no GPU.
            JobError: the library refused the engine.
        """
        if not path.is_file():
            raise InputError("no such file", file=path)
        reason = _why_not_here()
        if reason is not None:
            raise NotRunnableError(f"TensorRT cannot open the engine here: {reason}", file=path)
        from trtkp.engine.trt_runner import TrtEngineRunner

        return TrtEngineRunner(path, rtx=False)


def _why_not_here() -> str | None:
    if not importable(_MODULE):
        return "package tensorrt is not installed: pip install 'trtkp[tensorrt]'"
    report = find_gpus()
    return None if report.gpus else report.detail

"""The ``tensorrt-rtx`` backend: engines are built on any machine, without a GPU, and run on RTX GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from trtkp.engine.base import Availability, BuildRequest, BuildResult, Progress
from trtkp.engine.trt.backend import TrtBackend
from trtkp.engine.trt.process import build_in_worker
from trtkp.errors import InputError, JobError
from trtkp.machine.gpu import GpuReport, find_gpus
from trtkp.machine.packages import importable, installed_version

__all__ = ["RTX_COMPUTE_CAPABILITIES", "TensorRTRTXBackend"]

#: Compute capabilities on which TensorRT-RTX 1.x runs, from its support matrix. Hopper (9.0) and data-centre Blackwell
#: (10.x) are not among them.
RTX_COMPUTE_CAPABILITIES = frozenset({(7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1)})

#: Architectures whose tensor cores know FP8 (tried on 1.7.1: the others are refused by its compiler).
_FP8_TARGETS = ("sm89", "sm120", "sm121")

_MODULE = "tensorrt_rtx"
_DISTRIBUTIONS = ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12")
_NOT_INSTALLED = "package tensorrt_rtx is not installed: pip install 'trtkp[rtx]'"


class TensorRTRTXBackend(TrtBackend):
    """TensorRT-RTX, which supports standard operators only and no plugins.

    `trtkp.engine.trt.config.default_targets` explains the default target architectures. The weights are stored once and
    uncompressed: 38.35 MB of fp16 weights give an engine of 38.81 MB. Building it took 309 MiB of memory at its peak,
    in fp32 445 MiB (``benchmarks/results/rtx_targets.json``).
    """

    name: ClassVar[str] = "tensorrt-rtx"
    title: ClassVar[str] = "TensorRT-RTX"
    takes_targets: ClassVar[bool] = True
    magic: ClassVar[tuple[bytes, ...]] = (b"vtrt",)
    triton_note: ClassVar[str] = "Triton has no TensorRT-RTX backend: its engine.onnx is served by ONNX Runtime"

    def availability(self, device: int = 0) -> Availability:
        """Building needs the package only; running also needs an RTX GPU."""
        version = installed_version(*_DISTRIBUTIONS)
        if not importable(_MODULE):
            return Availability(False, False, None, _NOT_INSTALLED)
        reason = _why_not_here(find_gpus(), device)
        if reason is None:
            return Availability(True, True, version, f"TensorRT-RTX {version} on {find_gpus().detail}")
        return Availability(True, False, version, f"TensorRT-RTX {version} builds but does not run: {reason}")

    def build(self, request: BuildRequest, progress: Progress | None = None) -> BuildResult:
        """Build in a worker process. No GPU is needed unless the target is ``current``.

        Raises:
            InputError: an unknown target, ``current`` without a GPU, plugins, a missing file, or wrong shapes.
            JobError: the package is missing, TensorRT-RTX refused the graph, or the worker died.
        """
        if not importable(_MODULE):
            raise JobError(_NOT_INSTALLED)
        if request.trt.embed_plugins or request.plugins is not None:
            raise InputError("--embed-plugins: TensorRT-RTX supports no plugins", remedy="leave the option out")
        if "current" in (target.lower() for target in request.targets):
            reason = _why_not_here(find_gpus(), request.device)
            if reason is not None:
                raise InputError(f"target current: {reason}", remedy="name the architectures, such as sm86 and sm89")
        # TensorRT-RTX times no tactics at build time, so it would write an empty timing cache.
        request = replace(request, trt=replace(request.trt, timing_cache=None))
        return build_in_worker(_MODULE, request, self.artefact, progress)

    def check_quantisable(self, kind: str, targets: Sequence[str] = ()) -> None:
        """FP8 begins with Ada."""
        wrong = [target for target in targets if kind == "fp8" and target.lower() not in _FP8_TARGETS]
        if wrong and "current" not in wrong:
            known = ", ".join(_FP8_TARGETS)
            raise InputError(f"--target {wrong[0]} does not compute in FP8", remedy=f"choose from {known}, or use int8")

    def engine_targets(self, precision: str, targets: Sequence[str]) -> tuple[str, ...]:
        """Without any, those that know FP8 where the engine needs it."""
        return _FP8_TARGETS if precision == "fp8" and not targets else tuple(targets)

    def _why_not_run(self, device: int) -> str | None:
        return _why_not_here(find_gpus(), device) if importable(_MODULE) else _NOT_INSTALLED

    def _module(self) -> str:
        return _MODULE


def _why_not_here(report: GpuReport, device: int) -> str | None:
    """Why no engine runs on the GPU of this number; None if it is an RTX GPU."""
    gpu = report.gpu(device)
    if gpu is None:
        return report.why_not(device)
    if gpu.compute_capability not in RTX_COMPUTE_CAPABILITIES:
        return f"{gpu.name} ({gpu.sm}) is not an RTX GPU"
    return None

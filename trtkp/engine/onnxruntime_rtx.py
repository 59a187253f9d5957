"""The ``onnxruntime-rtx`` backend: ``engine.onnx`` in ONNX Runtime, compiled by TensorRT-RTX when it is opened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from trtkp.engine.base import Availability, Backend, Precision, QdqVariant
from trtkp.engine.onnxruntime import OnnxRuntimeBackend, OrtRunner, Provider
from trtkp.engine.options import RunOptions
from trtkp.engine.rtx_provider import DISTRIBUTIONS, MODULE, NOT_INSTALLED
from trtkp.errors import NotRunnableError
from trtkp.machine.gpu import GpuReport, find_gpus
from trtkp.machine.packages import importable, installed_version

__all__ = ["OnnxRuntimeRtxBackend"]


class OnnxRuntimeRtxBackend(OnnxRuntimeBackend):
    """ONNX Runtime with NVIDIA's provider library for RTX GPUs. It is built like the backend ``onnxruntime``.

    *Unverified* on a GPU: none was available to test it. The library is loaded up to its first need of a driver.
    """

    name: ClassVar[str] = "onnxruntime-rtx"
    runs_on_cpu: ClassVar[bool] = False
    qdq_variant: ClassVar[QdqVariant] = "explicit"
    default_fallback: ClassVar[Precision] = "fp16"

    def availability(self, device: int = 0) -> Availability:
        """Building needs ONNX Runtime only; running also needs the provider's package and an RTX GPU."""
        ort = super().availability(device)
        if not ort.can_build:
            return ort
        if not importable(MODULE):
            return Availability(True, False, None, f"{NOT_INSTALLED}: pip install 'trtkp[ort-rtx]'")
        version, report = installed_version(*DISTRIBUTIONS), find_gpus()
        reason = _why_not_here(report) or _why_not_device(device)
        return Availability(True, reason is None, version, f"provider {version}: {reason or report.detail}")

    def check_quantisable(self, kind: str, targets: Sequence[str] = ()) -> None:
        """Any type is taken: the GPU is that of the machine which opens the engine."""

    profile = Backend.profile  # refused: ONNX Runtime sees the whole graph as one node

    def open(
        self,
        path: Path,
        *,
        threads: int | None = None,
        options: RunOptions | None = None,
        provider: Provider = "rtx",
        spin: bool = False,
    ) -> OrtRunner:
        """Open an ONNX file on the first RTX GPU; ``threads`` and the other options are without effect.

        Raises:
            InputError: the file is missing or is not an ONNX model.
            NotRunnableError: the provider's package, the driver or an RTX GPU is missing, or another GPU than the first
                is asked for.
            JobError: TensorRT-RTX does not take the whole graph.
        """
        if options is not None and (reason := _why_not_device(options.device)) is not None:
            raise NotRunnableError(
                reason, remedy=f"leave that GPU alone visible: CUDA_VISIBLE_DEVICES={options.device}"
            )
        return super().open(path, threads=threads, options=options, provider=provider, spin=spin)


def _why_not_here(report: GpuReport) -> str | None:
    """Why no session opens on this machine; None if the first GPU is one that the provider takes."""
    if not report.gpus:
        return report.detail
    gpu = report.gpus[0]
    # from the header in the package, 0.5.0; TensorRT-RTX by itself also takes 7.5 and 8.0
    if gpu.compute_capability not in {(8, 6), (8, 9)} and gpu.compute_capability < (12, 0):
        return f"{gpu.name} ({gpu.sm}) is not among its GPUs (sm86, sm89, sm120 and later)"
    return None


def _why_not_device(device: int) -> str | None:
    """ONNX Runtime lists GPUs in an order of its own, so only the first is known to be the one that is meant."""
    return f"--device {device}: ONNX Runtime's TensorRT-RTX takes the first GPU only" if device else None

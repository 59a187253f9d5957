"""Backends: each builds an engine from an ONNX graph and runs it.

| backend | build needs | run needs | artefact |
|---|---|---|---|
| ``onnxruntime`` | nothing | CPU (or its CUDA provider) | ``engine.onnx`` |
| ``onnxruntime-rtx`` | nothing | RTX GPU | ``engine.onnx`` |
| ``tensorrt-rtx`` | CPU only | RTX GPU | ``model.engine`` |
| ``tensorrt`` | GPU | NVIDIA GPU | ``model.engine`` |

Importing this package imports none of the libraries behind the backends.

Example:
    >>> from trtkp.engine import BACKENDS, get_backend
    >>> list(BACKENDS)
    ['tensorrt', 'tensorrt-rtx', 'onnxruntime', 'onnxruntime-rtx']
    >>> get_backend("onnxruntime").artefact
    'engine.onnx'
"""

from __future__ import annotations

import importlib

from trtkp.engine.base import Availability, Backend, BuildRequest, BuildResult, Precision, Progress, Runner
from trtkp.errors import InputError, NotRunnableError

__all__ = [
    "BACKENDS",
    "Availability",
    "Backend",
    "BuildRequest",
    "BuildResult",
    "NotRunnableError",
    "Precision",
    "Progress",
    "Runner",
    "backend_of_engine",
    "choose_backend",
    "cpu_backend",
    "get_backend",
]

#: The backends by name, in the order in which ``auto`` tries them: module and class, imported when first asked for.
BACKENDS: dict[str, tuple[str, str]] = {
    "tensorrt": ("trtkp.engine.trt.tensorrt", "TensorRTBackend"),
    "tensorrt-rtx": ("trtkp.engine.trt.tensorrt_rtx", "TensorRTRTXBackend"),
    "onnxruntime": ("trtkp.engine.onnxruntime", "OnnxRuntimeBackend"),
    "onnxruntime-rtx": ("trtkp.engine.onnxruntime_rtx", "OnnxRuntimeRtxBackend"),
}

#: What ``auto`` takes where no backend can both build and run.
_FALLBACK = "onnxruntime"


def get_backend(name: str) -> Backend:
    """Return the backend of that name, whether or not it is available on this machine.

    Raises:
        InputError: no backend has that name.
    """
    if name not in BACKENDS:
        raise InputError(f"--backend {name}: not known", remedy=f"use one of {', '.join(('auto', *BACKENDS))}")
    module, cls = BACKENDS[name]
    backend: Backend = getattr(importlib.import_module(module), cls)()
    return backend


def backend_of_engine(start: bytes) -> Backend | None:
    """Return the backend whose engine files begin with these bytes; None if they are not those of an engine.

    Args:
        start: the first four bytes of a file, or more.
    """
    backends = map(get_backend, BACKENDS)
    return next((backend for backend in backends if start[:4] in backend.magic), None)


def cpu_backend() -> Backend:
    """Return the first backend whose engines run on this machine's CPU. It runs every ONNX graph, on any machine."""
    return next(backend for backend in map(get_backend, BACKENDS) if backend.runs_on_cpu)


def choose_backend(name: str = "auto", device: int = 0) -> Backend:
    """Return the named backend or, for ``auto``, the first of `BACKENDS` that can both build and run on that GPU.

    ``auto`` falls back to ``onnxruntime``, so on a machine without an NVIDIA GPU it always chooses it.

    Raises:
        InputError: no backend has that name.
    """
    if name != "auto":
        return get_backend(name)
    for backend in map(get_backend, BACKENDS):
        found = backend.availability(device)
        if found.can_build and found.can_run:
            return backend
    return get_backend(_FALLBACK)

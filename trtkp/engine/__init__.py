"""Backends: building an engine from an ONNX graph, and running it.

| backend | build needs | run needs | artefact |
|---|---|---|---|
| ``onnxruntime`` | nothing | CPU (or its CUDA provider) | ``engine.onnx`` |
| ``tensorrt-rtx`` | CPU only | RTX GPU | ``model.engine`` |
| ``tensorrt`` | GPU | NVIDIA GPU | ``model.engine`` |

Importing this package imports none of the libraries behind them.
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
    "get_backend",
]

_CLASSES = {
    "tensorrt": ("trtkp.engine.trt.tensorrt", "TensorRTBackend"),
    "tensorrt-rtx": ("trtkp.engine.trt.tensorrt_rtx", "TensorRTRTXBackend"),
    "onnxruntime": ("trtkp.engine.onnxruntime", "OnnxRuntimeBackend"),
}

#: Names of all backends, the one to prefer first.
BACKENDS = tuple(_CLASSES)


def get_backend(name: str) -> Backend:
    """The backend of that name, available here or not.

    Raises:
        InputError: there is none of that name.
    """
    if name not in _CLASSES:
        raise InputError(f"no backend {name!r}", remedy=f"choose one of {', '.join(BACKENDS)}, auto")
    module, cls = _CLASSES[name]
    backend: Backend = getattr(importlib.import_module(module), cls)()
    return backend


def backend_of_engine(start: bytes) -> Backend | None:
    """The backend whose engine files begin so; four bytes are enough, and None where they are no engine's."""
    backends = map(get_backend, BACKENDS)
    return next((backend for backend in backends if start[:4] in backend.magic), None)


def choose_backend(name: str = "auto") -> Backend:
    """The named backend, or for ``auto`` the best one that can build *and* run here.

    ``onnxruntime`` is what remains where nothing else runs, so on a machine without an NVIDIA GPU it is always it.

    Raises:
        InputError: there is no backend of that name.
    """
    if name != "auto":
        return get_backend(name)
    for candidate in BACKENDS:
        backend = get_backend(candidate)
        found = backend.availability()
        if (found.can_build and found.can_run) or candidate == BACKENDS[-1]:
            return backend
    raise AssertionError("unreachable: the last backend is always taken")

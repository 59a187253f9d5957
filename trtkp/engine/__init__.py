"""Backends: each builds an engine from an ONNX graph and runs it.

| backend | build needs | run needs | artefact |
|---|---|---|---|
| ``onnxruntime`` | nothing | CPU (or its CUDA provider) | ``engine.onnx`` |
| ``tensorrt-rtx`` | CPU only | RTX GPU | ``model.engine`` |
| ``tensorrt`` | GPU | NVIDIA GPU | ``model.engine`` |

Importing this package imports none of the libraries behind the backends.

Example:
    >>> from trtkp.engine import BACKENDS, get_backend
    >>> BACKENDS
    ('tensorrt', 'tensorrt-rtx', 'onnxruntime')
    >>> get_backend("onnxruntime").artefact
    'engine.onnx'
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from trtkp.engine.base import Availability, Backend, BuildRequest, BuildResult, Precision, Progress, Runner
from trtkp.errors import InputError, NotRunnableError

__all__ = [
    "BACKENDS",
    "Availability",
    "Backend",
    "BuildRequest",
    "BuildResult",
    "Choice",
    "NotRunnableError",
    "Precision",
    "Progress",
    "Runner",
    "choose_backend",
    "get_backend",
]

_CLASSES = {
    "tensorrt": ("trtkp.engine.trt.tensorrt", "TensorRTBackend"),
    "tensorrt-rtx": ("trtkp.engine.trt.tensorrt_rtx", "TensorRTRTXBackend"),
    "onnxruntime": ("trtkp.engine.onnxruntime", "OnnxRuntimeBackend"),
}

#: Names of all backends, in the order in which ``auto`` tries them.
BACKENDS = tuple(_CLASSES)


@dataclass(frozen=True)
class Choice:
    """A backend and, in one line, why it was chosen."""

    backend: Backend
    reason: str


def get_backend(name: str) -> Backend:
    """Return the backend of that name, whether or not it is available on this machine.

    Raises:
        InputError: no backend has that name.
    """
    if name not in _CLASSES:
        raise InputError(f"no backend {name!r}", remedy=f"choose one of {', '.join(BACKENDS)}, auto")
    module, cls = _CLASSES[name]
    backend: Backend = getattr(importlib.import_module(module), cls)()
    return backend


def choose_backend(name: str = "auto") -> Choice:
    """Return the named backend or, for ``auto``, the first of `BACKENDS` that can both build and run here.

    ``auto`` falls back to ``onnxruntime``, so on a machine without an NVIDIA GPU it always chooses it.

    Raises:
        InputError: no backend has that name.
    """
    if name != "auto":
        return Choice(get_backend(name), "asked for")
    passed_over: list[str] = []
    for candidate in BACKENDS:
        backend = get_backend(candidate)
        found = backend.availability()
        if (found.can_build and found.can_run) or candidate == BACKENDS[-1]:
            return Choice(backend, "; ".join([found.detail, *passed_over]))
        passed_over.append(f"not {candidate}: {found.detail}")
    raise AssertionError("unreachable: the last backend is always taken")

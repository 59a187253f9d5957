"""The compiled CUDA kernels from Python: their C interface, packed layers on the device, and the choice of a tactic.

`load_library` opens the library. `DeviceConv` holds the lists and weights of a layer on the device. `predict` and
`order` estimate how long tactics take on a GPU. This package imports neither PyTorch nor TensorRT; operators on tensors
are in `trtkp.ops`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trtkp.kernels.capi import Library, find_library, load_library
    from trtkp.kernels.layer import DeviceConv
    from trtkp.kernels.prediction import GPUS, Gpu, Layer, Prediction, order, predict

#: Public name to the module that holds it, imported at first use.
_HOME = {
    "GPUS": "prediction",
    "DeviceConv": "layer",
    "Gpu": "prediction",
    "Layer": "prediction",
    "Library": "capi",
    "Prediction": "prediction",
    "find_library": "capi",
    "load_library": "capi",
    "order": "prediction",
    "predict": "prediction",
}

__all__ = [
    "GPUS",
    "DeviceConv",
    "Gpu",
    "Layer",
    "Library",
    "Prediction",
    "find_library",
    "load_library",
    "order",
    "predict",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)

"""The CUDA kernels from Python: packed convolutions on tensors of PyTorch and of ``__cuda_array_interface__``.

``conv`` computes one, ``upload`` puts its lists on the device once, ``swap_convolutions`` makes a pruned module use
them, ``predict`` and ``order`` say what a tactic should take on a GPU. Importing this package imports no PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trtkp.kernels.capi import Library, find_library, load_library
    from trtkp.kernels.launch import conv
    from trtkp.kernels.layer import DeviceConv
    from trtkp.kernels.modules import PackedConv2d, swap_convolutions
    from trtkp.kernels.prediction import GPUS, Gpu, Layer, Prediction, order, predict
    from trtkp.kernels.torch_op import upload

#: Public name to the module that holds it, imported at first use.
_HOME = {
    "GPUS": "prediction",
    "DeviceConv": "layer",
    "Gpu": "prediction",
    "Layer": "prediction",
    "Library": "capi",
    "PackedConv2d": "modules",
    "Prediction": "prediction",
    "conv": "launch",
    "find_library": "capi",
    "load_library": "capi",
    "order": "prediction",
    "predict": "prediction",
    "swap_convolutions": "modules",
    "upload": "torch_op",
}

__all__ = [
    "GPUS",
    "DeviceConv",
    "Gpu",
    "Layer",
    "Library",
    "PackedConv2d",
    "Prediction",
    "conv",
    "find_library",
    "load_library",
    "order",
    "predict",
    "swap_convolutions",
    "upload",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)

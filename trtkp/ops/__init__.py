"""Packed convolutions on PyTorch tensors, and on objects with ``__cuda_array_interface__``.

`conv` computes a packed convolution. `upload` copies its lists and weights to a device once. `swap_convolutions`
replaces the pruned convolutions of a PyTorch module. Importing this package does not import PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trtkp.ops.launch import conv
    from trtkp.ops.modules import PackedConv2d, swap_convolutions
    from trtkp.ops.torch_op import upload

#: Public name to the module that holds it, imported at first use.
_HOME = {"PackedConv2d": "modules", "conv": "launch", "swap_convolutions": "modules", "upload": "torch_op"}

__all__ = ["PackedConv2d", "conv", "swap_convolutions", "upload"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)

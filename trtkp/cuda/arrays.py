"""Views: tensors as kernels see them, with an address, a shape, strides and a type.

They are made from PyTorch tensors and from objects with ``__cuda_array_interface__``. Nothing is copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from trtkp.errors import InputError

__all__ = ["DATA_TYPES", "Activation4d", "View", "activation", "view"]

#: Element type to its number in the C interface (``trtkpDataType``) and its size in bytes.
DATA_TYPES = {"float32": (0, 4), "float16": (1, 2), "bfloat16": (2, 2)}
_TYPE_STRINGS = {"<f4": "float32", "<f2": "float16", "<i4": "int32", "<i8": "int64", "|i1": "int8", "|u1": "uint8",
                 "|b1": "bool"}  # fmt: skip


@dataclass(frozen=True)
class View:
    """A view of device memory. Strides count elements, not bytes."""

    name: str
    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str

    @property
    def contiguous(self) -> bool:
        """Whether the elements lie one after the other, in the order of the shape."""
        return all(
            size == 1 or stride == prod(self.shape[axis + 1 :])
            for axis, (size, stride) in enumerate(zip(self.shape, self.strides, strict=True))
        )


@dataclass(frozen=True)
class Activation4d(View):
    """A view ``[N, C, H, W]`` with the channels innermost. ``pitch`` is the distance between two pixels in elements."""

    pitch: int


def view(array: Any, name: str) -> View:
    """A view of an array.

    Args:
        array: a PyTorch tensor, or an object with ``__cuda_array_interface__``.
        name: what to call it in error messages.

    Raises:
        InputError: the array is neither of these, or its element type is not known.
    """
    # Tensors are asked directly, as PyTorch's __cuda_array_interface__ has no bfloat16.
    if hasattr(array, "data_ptr"):
        dtype = str(array.dtype).removeprefix("torch.")
        return View(name, array.data_ptr(), tuple(array.shape), tuple(array.stride()), dtype)
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is None:
        kind = f"{type(array).__module__}.{type(array).__qualname__}"
        raise InputError(f"{name} is a {kind}", remedy="give a CUDA tensor, or an object with __cuda_array_interface__")
    if interface["typestr"] not in _TYPE_STRINGS:
        known = ", ".join(_TYPE_STRINGS.values())
        raise InputError(f"{name} has elements of type {interface['typestr']}", remedy=f"use one of {known}")
    dtype = _TYPE_STRINGS[interface["typestr"]]
    shape = tuple(interface["shape"])
    itemsize = int(interface["typestr"][2:])
    bytes_apart = interface.get("strides") or [itemsize * prod(shape[axis + 1 :]) for axis in range(len(shape))]
    strides = tuple(stride // itemsize for stride in bytes_apart)
    return View(name, interface["data"][0] or 0, shape, strides, dtype)


def activation(array: Any, name: str) -> Activation4d:
    """A view ``[N, C, H, W]`` whose channels are innermost (PyTorch calls it channels-last).

    Args:
        array: see `view`.
        name: what to call it in error messages.

    Raises:
        InputError: the array has another rank or another memory order.
    """
    found = view(array, name)
    if len(found.shape) != 4 or 0 in found.shape:
        raise InputError(f"{name} has shape {list(found.shape)}, expected [N, C, H, W] without a 0")
    _, channels, height, width = found.shape
    n_stride, c_stride, h_stride, w_stride = found.strides
    # The stride of an axis with one element can be anything, so the pitch comes from the first axis with more.
    if width > 1:
        pitch = w_stride
    elif height > 1:
        pitch = h_stride
    elif found.shape[0] > 1:
        pitch = n_stride
    else:
        pitch = channels
    in_order = (
        (channels == 1 or c_stride == 1)
        and (height == 1 or h_stride == width * pitch)
        and (found.shape[0] == 1 or n_stride == height * width * pitch)
    )
    if not in_order or pitch < channels:
        raise InputError(
            f"{name} {list(found.shape)} with strides {list(found.strides)} is not channels-last",
            remedy="x.contiguous(memory_format=torch.channels_last) makes it so",
        )
    return Activation4d(found.name, found.address, found.shape, found.strides, found.dtype, pitch)

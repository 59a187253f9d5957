"""Tensors in memory that a server and its worker share; it is anonymous and goes with the last of them."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Iterable
from typing import Any

import numpy as np

from trtkp.machine.processes import Closing
from trtkp.shapes import Shape

__all__ = ["Arena", "Layout", "layout"]

_ALIGNMENT = 64

#: Name, NumPy dtype name, shape and byte offset of every tensor; JSON keeps it.
Layout = list[tuple[str, str, list[int], int]]


def layout(tensors: Iterable[tuple[str, np.dtype, Shape]]) -> tuple[Layout, int]:
    """Where tensors lie one after the other, and the bytes they take."""
    offset, places = 0, []
    for name, dtype, shape in tensors:
        places.append((name, dtype.name, list(shape), offset))
        offset += -(-math.prod(shape) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
    return places, offset


class Arena(Closing):
    """A shared piece of memory, by its file descriptor; it grows when asked to."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._memory: mmap.mmap | None = None

    @classmethod
    def new(cls) -> Arena:
        """An empty one."""
        if hasattr(os, "memfd_create"):
            return cls(os.memfd_create("trtkp"))
        with tempfile.TemporaryFile() as file:
            return cls(os.dup(file.fileno()))

    def reserve(self, size: int) -> None:
        """Make it at least that many bytes large."""
        if os.fstat(self.descriptor).st_size < size:
            os.ftruncate(self.descriptor, size)

    def views(self, places: Layout) -> dict[str, np.ndarray]:
        """The tensors, in place; they must be gone before the arena grows or closes."""
        memory = self._map()
        return {
            name: np.ndarray(tuple(shape), _dtype(dtype), buffer=memory, offset=offset)
            for name, dtype, shape, offset in places
        }

    def close(self) -> None:
        """Give the memory back."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
        self._memory = None  # unmapped with the last view

    def _map(self) -> Any:
        size = os.fstat(self.descriptor).st_size
        if self._memory is None or len(self._memory) != size:
            self._memory = mmap.mmap(self.descriptor, size) if size else None
        return self._memory if self._memory is not None else bytearray()


def _dtype(name: str) -> np.dtype:
    import ml_dtypes  # noqa: F401 - registers bfloat16

    return np.dtype(name)

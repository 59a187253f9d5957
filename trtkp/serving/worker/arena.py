"""Tensors in memory shared by the server and a worker.

The memory is anonymous: it has no name in the file system, and the operating system frees it when the last of the two
processes closes it, however they end.
"""

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

#: Tensors begin at multiples of this many bytes: one cache line, and the width of an AVX-512 register.
_ALIGNMENT = 64

#: Name, NumPy dtype name, shape and byte offset of every tensor. It consists of JSON types, to be sent as such.
Layout = list[tuple[str, str, list[int], int]]


def layout(tensors: Iterable[tuple[str, np.dtype, Shape]]) -> tuple[Layout, int]:
    """Place tensors one after the other. Returns their places, and the number of bytes they take.

    Example:
        >>> layout([("x", np.dtype("float32"), (2, 3)), ("y", np.dtype("int8"), (5,))])
        ([('x', 'float32', [2, 3], 0), ('y', 'int8', [5], 64)], 128)
    """
    offset, places = 0, []
    for name, dtype, shape in tensors:
        places.append((name, dtype.name, list(shape), offset))
        offset += -(-math.prod(shape) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
    return places, offset


class Arena(Closing):
    """A block of shared memory, identified by its file descriptor, that can grow."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._memory: mmap.mmap | None = None

    @classmethod
    def new(cls) -> Arena:
        """Make an empty arena, in memory on Linux and in an unnamed temporary file elsewhere."""
        if hasattr(os, "memfd_create"):
            import fcntl

            descriptor = os.memfd_create("trtkp", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            # If the other process could shrink it, reading behind its new end would kill this one (SIGBUS).
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
            return cls(descriptor)
        with tempfile.TemporaryFile() as file:
            return cls(os.dup(file.fileno()))

    def reserve(self, size: int) -> None:
        """Grow the arena to at least ``size`` bytes."""
        if os.fstat(self.descriptor).st_size < size:
            os.ftruncate(self.descriptor, size)

    def views(self, places: Layout) -> dict[str, np.ndarray]:
        """Return the tensors as views of the memory. Drop them before the arena grows or closes."""
        memory = self._map()
        return {
            name: np.ndarray(tuple(shape), _dtype(dtype), buffer=memory, offset=offset)
            for name, dtype, shape, offset in places
        }

    def close(self) -> None:
        """Close the descriptor; the memory is unmapped when the last view is gone."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
        self._memory = None

    def _map(self) -> Any:
        size = os.fstat(self.descriptor).st_size
        # The other process may have grown the arena since it was mapped.
        if self._memory is None or len(self._memory) != size:
            self._memory = mmap.mmap(self.descriptor, size) if size else None
        return self._memory if self._memory is not None else bytearray()


def _dtype(name: str) -> np.dtype:
    import ml_dtypes  # noqa: F401 - registers bfloat16

    return np.dtype(name)

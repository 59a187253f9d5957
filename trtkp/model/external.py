"""Reading external data of ONNX files, from the model's own folder only.

Every component of a location is opened without following links, and the checks look at the open file instead of its
name. So nothing outside the folder is opened, and a file cannot be exchanged between check and use.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from trtkp.errors import InputError

__all__ = ["ExternalData", "MappedWeight"]

_REMEDY = "keep the data files in the model's folder and export the model again"


@dataclass(frozen=True)
class MappedWeight:
    """A weight in a data file that is mapped, not read. The file must not become shorter meanwhile.

    Attributes:
        array: its values, read-only.
        memory: the mapping of the whole file. Each mapping holds a file descriptor, and a model may have more weights
            than a process may have of those.
        offset: where the weight begins, in bytes.
    """

    array: npt.NDArray[Any]
    memory: mmap.mmap
    offset: int

    def release(self) -> None:
        """Give its memory back to the system; the values are read again when they are needed."""
        if hasattr(mmap, "MADV_DONTNEED"):
            start = self.offset // mmap.PAGESIZE * mmap.PAGESIZE
            self.memory.madvise(mmap.MADV_DONTNEED, start, self.offset - start + self.array.nbytes)


class ExternalData:
    """Reads the data files of one model. Each is opened once; a ``with`` block closes them.

    Args:
        path: the model file. Locations are relative to its folder.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._folder = path.parent
        self._open: dict[str, tuple[int, int]] = {}
        self._maps: dict[str, mmap.mmap] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor, _size in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def load(self, tensor: TensorProto, expected: int) -> None:
        """Read the bytes of a tensor and store them in it, in place.

        Args:
            tensor: a tensor with ``data_location`` EXTERNAL.
            expected: number of bytes that its shape and type need.

        Raises:
            InputError: the location is outside the folder or a link, or the file does not have the bytes.
        """
        descriptor, location, offset = self._place(tensor, expected)
        data = bytearray()
        while len(data) < expected:
            part = os.pread(descriptor, min(expected - len(data), 1 << 26), offset + len(data))
            if not part:
                raise self._refusal(tensor, f"{location} became shorter while it was read")
            data += part
        tensor.raw_data = bytes(data)
        del tensor.external_data[:]
        tensor.data_location = TensorProto.DEFAULT

    def map(self, tensor: TensorProto, dtype: np.dtype[Any]) -> MappedWeight:
        """Map the bytes of a tensor into memory. The tensor stays as it is.

        Args:
            tensor: a tensor with ``data_location`` EXTERNAL, of at least one value.
            dtype: its type.

        Raises:
            InputError: see `load`.
        """
        shape = tuple(tensor.dims)
        expected = math.prod(shape) * dtype.itemsize
        descriptor, location, offset = self._place(tensor, expected)
        memory = self._maps.get(location)
        if memory is None:
            memory = self._maps[location] = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        return MappedWeight(np.frombuffer(memory, dtype, math.prod(shape), offset).reshape(shape), memory, offset)

    def _place(self, tensor: TensorProto, expected: int) -> tuple[int, str, int]:
        """Descriptor, location and offset of a tensor's bytes, which are all there."""
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        try:
            offset = int(entries.get("offset", "0") or "0")
            length = int(entries.get("length", "") or expected)
        except ValueError:
            raise self._refusal(tensor, "offset or length is not a number") from None
        if offset < 0 or length != expected:
            raise self._refusal(tensor, f"{length} bytes at offset {offset}, the tensor has {expected}")
        descriptor, size = self._file(tensor, location)
        if offset + length > size:
            raise self._refusal(tensor, f"bytes {offset} to {offset + length} of {location}, which has {size}")
        return descriptor, location, offset

    def digests(self) -> list[tuple[str, bytes]]:
        """Location and SHA-256 digest of every file that was read, in the order of the locations."""
        found = []
        for location, (descriptor, size) in sorted(self._open.items()):
            digest, offset = hashlib.sha256(), 0
            while offset < size and (part := os.pread(descriptor, 1 << 24, offset)):
                digest.update(part)
                offset += len(part)
            found.append((location, digest.digest()))
        return found

    def _file(self, tensor: TensorProto, location: str) -> tuple[int, int]:
        if location in self._open:
            return self._open[location]
        parts = PurePosixPath(location).parts
        outside = not parts or PurePosixPath(location).is_absolute() or ".." in parts
        if outside or "\\" in location or "\0" in location or ":" in parts[0]:
            raise self._refusal(tensor, f"location {ascii(location)[:80]} is outside the model's folder")
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                for part in parts[:-1]:
                    outer, folder = folder, os.open(part, flags | os.O_DIRECTORY, dir_fd=folder)
                    os.close(outer)
                # Checked before opening, so that a device or a pipe is not touched; O_NOFOLLOW keeps a link from being
                # put in its place in the meantime.
                self._check(tensor, location, os.stat(parts[-1], dir_fd=folder, follow_symlinks=False))
                descriptor = os.open(parts[-1], flags, dir_fd=folder)
            finally:
                os.close(folder)
        except FileNotFoundError:
            raise self._refusal(tensor, f"{location} is not there") from None
        except OSError as error:
            raise self._refusal(tensor, f"{location} cannot be opened ({error.strerror})") from None
        status = os.fstat(descriptor)
        try:
            self._check(tensor, location, status)
        except InputError:
            os.close(descriptor)
            raise
        self._open[location] = descriptor, status.st_size
        return self._open[location]

    def _check(self, tensor: TensorProto, location: str, status: os.stat_result) -> None:
        if stat.S_ISLNK(status.st_mode):
            raise self._refusal(tensor, f"{location} is a symbolic link")
        if not stat.S_ISREG(status.st_mode):
            raise self._refusal(tensor, f"{location} is not a regular file")
        if status.st_nlink > 1:
            # The other name may be anywhere, also outside the folder.
            raise self._refusal(tensor, f"{location} is a hard link")

    def _refusal(self, tensor: TensorProto, problem: str) -> InputError:
        return InputError(f"external data refused: {problem}", file=self._path, layer=tensor.name, remedy=_REMEDY)

"""CIFAR-10 and CIFAR-100 batches as their authors publish them, in the binary and in the Python version.

The Python version is a pickle. The unpickler here knows only the names that a pickled NumPy array needs, and replaces
them by inert classes. So a file can neither name a function nor have one called with its content.

Source: https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trtkp.errors import InputError
from trtkp.files import read_file, reading

__all__ = ["is_cifar", "read_cifar", "read_pickle"]

_IMAGE = (3, 32, 32)
_BYTES = prod(_IMAGE)
#: Names of the published files. Of a folder, the files of the first pattern that matches anything are read, so training
#: batches come before test batches.
_PATTERNS = (
    "data_batch_*.bin",
    "data_batch_[0-9]",
    "train.bin",
    "train",
    "test_batch.bin",
    "test_batch",
    "test.bin",
    "test",
)
_LABELS = (b"labels", b"fine_labels")
#: Largest file that is read. The largest published batch has 50,000 images and 154 MB.
_LARGEST = 1 << 29


def is_cifar(path: Path) -> bool:
    """Whether a path is a file with a published name, or a folder that holds one."""
    return bool(_files(path))


def read_cifar(path: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The images and labels of a batch, or of all training batches in a folder.

    Returns:
        Images, uint8 [N, 3, 32, 32], and labels, int64 [N]. For CIFAR-100 these are the fine labels.

    Raises:
        InputError: the file is no CIFAR batch, or a pickle of anything but arrays, numbers, text, lists and
            dictionaries.
    """
    parts = [_read(file) for file in _files(path)]
    if not parts:
        raise InputError("holds no CIFAR batches", file=path)
    return np.concatenate([images for images, _ in parts]), np.concatenate([labels for _, labels in parts])


def read_pickle(data: bytes, file: Path | None = None) -> Any:
    """Read a pickle of arrays, bytes, text, numbers, lists and dictionaries. Text of Python 2 becomes bytes.

    Args:
        data: the pickle.
        file: the file that it comes from, for error messages.

    Raises:
        InputError: the pickle names anything else, or is broken.
    """
    try:
        return _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except _RefusedError as error:
        raise InputError(
            f"is a pickle that names {error}, which is code", file=file, remedy="use the batches as published"
        ) from None
    except Exception as error:  # a broken pickle can raise anything
        raise InputError(f"is not a readable batch ({type(error).__name__})", file=file) from None


def _files(path: Path) -> list[Path]:
    with reading(path, "folder of CIFAR batches"):
        return _matching(path)


def _matching(path: Path) -> list[Path]:
    if path.is_dir():
        found = ([file for file in sorted(path.glob(pattern)) if file.is_file()] for pattern in _PATTERNS)
        return next((files for files in found if files), [])
    names = any(path.match(pattern) for pattern in _PATTERNS)
    return [path] if names and path.is_file() else []


def _read(file: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    data = read_file(file, "CIFAR batch", most=_LARGEST)
    return _binary(data, file) if file.suffix == ".bin" else _pickled(data, file)


def _binary(data: bytes, file: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Read records of one label byte (CIFAR-10) or a coarse and a fine label (CIFAR-100), and 3,072 bytes of pixels."""
    sizes = {1: len(data) % (1 + _BYTES), 2: len(data) % (2 + _BYTES)}
    hundred = file.name in ("train.bin", "test.bin")
    labels = 2 if hundred else 1
    if not data or sizes[labels]:
        raise InputError(f"has {len(data)} bytes, not records of {labels + _BYTES}", file=file)
    records = np.frombuffer(data, np.uint8).reshape(-1, labels + _BYTES)
    return records[:, labels:].reshape(-1, *_IMAGE), records[:, labels - 1].astype(np.int64)


def _pickled(data: bytes, file: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    content = read_pickle(data, file)
    if not isinstance(content, Mapping):
        raise InputError("is not a CIFAR batch: no dictionary", file=file)
    entries = {key.encode() if isinstance(key, str) else key: value for key, value in content.items()}
    stored = entries.get(b"data")
    labels = next((entries[name] for name in _LABELS if name in entries), None)
    images = stored.array() if isinstance(stored, _Array) else None
    if images is None or images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != _BYTES:
        raise InputError("is not a CIFAR batch: data is no uint8 array [N, 3072]", file=file)
    if not isinstance(labels, list) or len(labels) != len(images) or not all(type(one) is int for one in labels):
        raise InputError("is not a CIFAR batch: labels are no list of N numbers", file=file)
    return images.reshape(-1, *_IMAGE), np.asarray(labels, np.int64)


class _RefusedError(Exception):
    """The pickle has a name that no CIFAR batch has."""


class _Dtype:
    """A stand-in for a NumPy dtype. Only uint8 is used."""

    def __init__(self, name: object = None, *_: object) -> None:
        self.name = name

    def __setstate__(self, state: object) -> None:
        """Ignore the state, which holds the byte order: a type of one byte has none."""


class _Array:
    """A stand-in for a NumPy array: it stores what the pickle says of shape, type, order and bytes."""

    def __init__(self) -> None:
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def array(self) -> npt.NDArray[np.uint8] | None:
        """The array, if it is of uint8 and its bytes fill its shape; otherwise None."""
        match self.state:
            case (1, tuple() as shape, _Dtype(name="u1" | b"u1"), bool() | int() as fortran, bytes() as data):
                sizes = [size for size in shape if type(size) is int and size >= 0]
                if len(sizes) == len(shape) and prod(sizes) == len(data):
                    return np.frombuffer(data, np.uint8).reshape(sizes, order="F" if fortran else "C")
        return None


class _Unpickler(pickle.Unpickler):
    """An unpickler that knows the names that pickled arrays and bytes need, and refuses all others."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return _reconstruct
        if (module, name) == ("numpy", "ndarray"):
            return _Array
        if (module, name) == ("numpy", "dtype"):
            return _Dtype
        if (module, name) == ("_codecs", "encode"):  # bytes in a protocol below 3
            return _encode
        raise _RefusedError(f"{module}.{name}")

    def persistent_load(self, pid: object) -> Any:
        raise _RefusedError("a persistent object")


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _encode(text: object, encoding: object = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise _RefusedError("an encoding other than latin1")
    return text.encode("latin1")

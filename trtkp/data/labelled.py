"""Labelled data for ``--data``: a NumPy archive of inputs and labels. Reading it executes nothing."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trtkp.errors import InputError
from trtkp.files import open_regular
from trtkp.shapes import Profile

__all__ = ["LabelledData", "check_data", "check_labels", "decide", "load_data", "read_arrays"]

#: Names that the inputs and the labels of an archive may have, the first that is there counts.
_INPUTS, _LABELS = ("x", "images", "inputs", "data"), ("y", "labels", "targets")
#: A member that unpacks to more bytes than this may not be packed denser than by `_RATIO`; zeros reach 1,000.
_UNPACKED, _RATIO = 256 << 20, 100
_REMEDY = "save it with numpy.savez(path, x=..., y=...)"


@dataclass(frozen=True)
class LabelledData:
    """Inputs [N, ...] as the model takes them, and class labels, int64 [N]."""

    inputs: npt.NDArray[Any]
    labels: npt.NDArray[np.int64]


def load_data(path: str | PathLike[str]) -> LabelledData:
    """Read an ``.npz`` archive with inputs [N, ...] and labels [N].

    Inputs are called ``x``, ``images``, ``inputs`` or ``data``; labels ``y``, ``labels`` or ``targets``.

    Raises:
        InputError: the file is no such archive, or its arrays do not fit each other.
    """
    path = Path(path)
    if not path.exists():
        raise InputError("no such file", file=path, remedy="give --data an .npz archive of x and y")
    inputs, labels, names = read_arrays(path)
    if inputs is None or labels is None:
        raise InputError(f"holds {', '.join(names) or 'nothing'}, expected x and y", file=path, remedy=_REMEDY)
    if not len(labels):
        raise InputError(f"{_described(inputs, labels)}: expected [N, ...] and integer labels [N]", file=path)
    return LabelledData(inputs, labels)


def read_arrays(
    path: Path, suffix: str = ""
) -> tuple[npt.NDArray[Any] | None, npt.NDArray[np.int64] | None, list[str]]:
    """Inputs [N, ...] and labels [N] of an ``.npz`` archive, each None if missing, and the names of all its arrays.

    Args:
        path: the archive.
        suffix: what the names of the arrays end with, such as ``_test``.

    Raises:
        InputError: the file is no archive of arrays, or the arrays do not fit each other.
    """
    of_inputs, of_labels = [f"{name}{suffix}" for name in _INPUTS], [f"{name}{suffix}" for name in _LABELS]
    with open_regular(path, ".npz archive", _REMEDY) as file:
        if file.read(6) == b"\x93NUMPY":
            raise InputError("is a single array, expected an .npz archive of x and y", file=path, remedy=_REMEDY)
        file.seek(0)
        try:
            with zipfile.ZipFile(file) as archive:
                _check_sizes(archive.infolist(), path)
            file.seek(0)
            loaded = np.load(file, allow_pickle=False)
            names = loaded.files
            found = {name: loaded[name] for name in (*of_inputs, *of_labels) if name in names}
        except InputError:
            raise
        except MemoryError:
            raise InputError("needs more memory than there is", file=path, remedy="give fewer samples") from None
        except Exception as error:  # a broken archive raises exceptions of NumPy, zipfile and zlib
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise InputError(f"not a readable .npz archive ({reason})", file=path, remedy=_REMEDY) from None
    inputs, labels = _first(found, of_inputs), _first(found, of_labels)
    arrays = [array for array in (inputs, labels) if array is not None]
    fits = all(type(array) is np.ndarray and array.ndim >= 1 for array in arrays)  # a member of a zip may be bytes
    fits = fits and (inputs is None or inputs.dtype.kind in "fiub")
    fits = fits and (labels is None or (labels.ndim == 1 and labels.dtype.kind in "iu"))
    if not fits or len({len(array) for array in arrays}) > 1:
        raise InputError(f"{_described(inputs, labels)}: expected [N, ...] and integer labels [N]", file=path)
    return inputs, None if labels is None else labels.astype(np.int64), names


def _check_sizes(members: Sequence[zipfile.ZipInfo], path: Path) -> None:
    """Refuse members that unpack to far more than they are packed in, before anything is unpacked."""
    for member in members:
        if member.file_size > max(_UNPACKED, _RATIO * member.compress_size):
            raise InputError(
                f"{member.filename} unpacks to {member.file_size:,} bytes from {member.compress_size:,}", file=path,
                remedy="save it without compression, with numpy.savez",
            )  # fmt: skip


def _described(*arrays: Any) -> str:
    known = ((name, array) for name, array in zip("xy", arrays, strict=True) if isinstance(array, np.ndarray))
    return ", ".join(f"{name} is {array.dtype}{list(array.shape)}" for name, array in known)


def check_data(data: LabelledData, profile: Profile) -> None:
    """Check that data fits the shapes that a model takes.

    Raises:
        InputError: the model has several inputs, or the samples have another shape than its input.
    """
    if len(profile) != 1:
        raise InputError(f"--data needs a model of one input, this one has {len(profile)}")
    limits = next(iter(profile.values()))
    if data.inputs.shape[1:] != limits.opt[1:]:
        raise InputError(
            f"--data has samples of shape {list(data.inputs.shape[1:])}, the model takes {list(limits.opt[1:])}"
        )


def check_labels(
    labels: npt.NDArray[np.int64] | None, output: Sequence[object], path: str | PathLike[str] | None
) -> None:
    """Check labels against the classes of a model's first output, before anything is computed.

    Args:
        labels: int64 [N]; None for data without labels.
        output: shape of the model's first output. Sizes that are no numbers are not known yet.
        path: the data, for the message.

    Raises:
        InputError: a label is no class.
    """
    if labels is None or not len(labels):
        return
    low, high = int(labels.min()), int(labels.max())
    classes = output[1] if len(output) == 2 else None
    if low < 0 or (isinstance(classes, int) and high >= classes):
        wanted = f"0..{classes - 1}" if isinstance(classes, int) else "0 and more"
        raise InputError(f"has labels {low}..{high}, the model's classes are {wanted}", file=path)


def decide(logits: npt.NDArray[Any], labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The predicted class of each sample: the one with the largest logit.

    Args:
        logits: [N, classes].
        labels: [N], only to check that they are classes of the model.

    Returns:
        int64 [N].

    Raises:
        InputError: the logits are not [N, classes], or a label is beyond the classes.

    Example:
        >>> decide(np.array([[0.1, 2.0], [3.0, -1.0]]), np.array([1, 1]))
        array([1, 0])
    """
    if logits.ndim != 2 or not 0 <= labels.min() <= labels.max() < logits.shape[1]:
        raise InputError(
            f"--data has labels {labels.min()}..{labels.max()}, the model's first output is "
            f"[N{''.join(f', {size}' for size in logits.shape[1:])}], expected [N, classes]"
        )
    return logits.argmax(axis=1).astype(np.int64)


def _first(found: Mapping[str, npt.NDArray[Any]], names: Sequence[str]) -> npt.NDArray[Any] | None:
    return next((found[name] for name in names if name in found), None)

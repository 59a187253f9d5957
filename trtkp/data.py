"""Labelled data for ``--data``: a NumPy archive, read without executing anything."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trtkp.errors import InputError
from trtkp.shapes import Profile

if TYPE_CHECKING:
    from trtkp.engine.base import Runner

__all__ = ["LabelledData", "accuracy", "load_data"]

#: Names that the two arrays of an archive may have.
_INPUTS, _LABELS = ("x", "images", "inputs", "data"), ("y", "labels", "targets")


@dataclass(frozen=True)
class LabelledData:
    """Inputs [N, ...] as the model takes them, and class labels [N]."""

    inputs: npt.NDArray[Any]
    labels: npt.NDArray[np.int64]


def load_data(path: str | PathLike[str]) -> LabelledData:
    """An ``.npz`` with ``x`` (or images, inputs, data) [N, ...] and ``y`` (or labels, targets) [N].

    Raises:
        InputError: not such an archive, or arrays that do not fit each other.
    """
    path = Path(path)
    if not path.exists():
        raise InputError("no such file", file=path, remedy="give --data an .npz archive of x and y")
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise InputError(
            f"not a readable .npz archive ({error})", file=path, remedy="save it with numpy.savez"
        ) from None
    inputs, labels = _first(found, _INPUTS), _first(found, _LABELS)
    if inputs is None or labels is None:
        names = ", ".join(found) or "nothing"
        raise InputError(
            f"holds {names}, expected x and y", file=path, remedy="save it with numpy.savez(path, x=..., y=...)"
        )
    if (
        labels.ndim != 1
        or labels.dtype.kind not in "iu"
        or inputs.ndim < 1
        or len(inputs) != len(labels)
        or not len(labels)
    ):
        shapes = f"x is {inputs.dtype}{list(inputs.shape)}, y is {labels.dtype}{list(labels.shape)}"
        raise InputError(f"{shapes}: expected [N, ...] and integer labels [N]", file=path)
    return LabelledData(inputs, labels.astype(np.int64))


def accuracy(runner: Runner, data: LabelledData, profile: Profile) -> float:
    """Share of samples whose largest logit in the first output is at the label, with batches the profile allows.

    Raises:
        InputError: the model has several inputs, or the data is not shaped like its input.
    """
    if len(runner.inputs) != 1:
        raise InputError(f"accuracy needs a model of one input, this one has {len(runner.inputs)}")
    spec = runner.inputs[0]
    limits = profile[spec.name]
    inputs = data.inputs.astype(spec.dtype)
    if inputs.shape[1:] != limits.opt[1:]:
        raise InputError(
            f"--data has samples of shape {list(inputs.shape[1:])}, the model takes {list(limits.opt[1:])}"
        )
    right, size = 0, limits.max[0]
    for begin in range(0, len(inputs), size):
        batch = inputs[begin : begin + size]
        count = len(batch)
        if count < limits.min[0]:  # the last batch of a model with a fixed or minimum batch
            batch = np.concatenate([batch, np.repeat(batch[-1:], limits.min[0] - count, axis=0)])
        logits = next(iter(runner.run({spec.name: batch}).values()))
        right += int(np.count_nonzero(logits[:count].argmax(axis=1) == data.labels[begin : begin + count]))
    return right / len(inputs)


def _first(found: Mapping[str, npt.NDArray[Any]], names: tuple[str, ...]) -> npt.NDArray[Any] | None:
    return next((found[name] for name in names if name in found), None)

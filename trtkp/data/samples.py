"""Samples to calibrate with: an ``.npz`` archive, a folder of images, or CIFAR batches. Reading executes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trtkp.data.cifar import is_cifar, read_cifar
from trtkp.data.images import is_image_folder, read_images
from trtkp.data.labelled import LabelledData, read_arrays
from trtkp.errors import InputError
from trtkp.files import check_name
from trtkp.shapes import ShapeRange

__all__ = ["Samples", "check_samples", "load_samples", "normalised"]

_REMEDY = "give an .npz of x (and y), a folder of images, or a folder of CIFAR batches"


@dataclass(frozen=True)
class Samples:
    """Samples of a model's input.

    Attributes:
        inputs: [N, ...], as the model takes them.
        labels: class labels, int64 [N]; None if there are none.
        name: name of the file or folder that they were read from.

    Example:
        >>> samples = Samples(np.arange(10, dtype=np.float32).reshape(10, 1))
        >>> samples.spread(4).inputs.ravel().tolist()
        [0.0, 2.0, 5.0, 7.0]
    """

    inputs: npt.NDArray[Any]
    labels: npt.NDArray[np.int64] | None = None
    name: str = "data"

    @property
    def digest(self) -> str:
        """SHA-256 over dtype, shape and values of the inputs, in hexadecimal."""
        digest = sha256(f"{self.inputs.dtype}{list(self.inputs.shape)}".encode())
        digest.update(np.ascontiguousarray(self.inputs).data)
        return digest.hexdigest()

    @property
    def labelled(self) -> LabelledData | None:
        """The samples as data to measure accuracy on; None without labels."""
        return LabelledData(self.inputs, self.labels) if self.labels is not None else None

    def spread(self, count: int) -> Samples:
        """At most ``count`` samples, spread evenly over the set, because files are often sorted by class."""
        if len(self.inputs) <= count:
            return self
        chosen = np.arange(count) * len(self.inputs) // count
        return Samples(self.inputs[chosen], None if self.labels is None else self.labels[chosen], self.name)

    def batches(self, limits: ShapeRange) -> Iterator[tuple[npt.NDArray[Any], int]]:
        """Batches of the profile's ``opt`` size, each with the number of its samples that count.

        A last batch below the profile's minimum is filled up with copies of its last sample, which do not count.
        """
        size = limits.opt[0]
        for begin in range(0, len(self.inputs), size):
            batch = self.inputs[begin : begin + size]
            count = len(batch)
            if count < limits.min[0]:
                batch = np.concatenate([batch, np.repeat(batch[-1:], limits.min[0] - count, axis=0)])
            yield batch, count


def load_samples(
    path: str | PathLike[str],
    shape: Sequence[int],
    *,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
) -> Samples:
    """Read samples as float32.

    Arrays of an ``.npz`` archive are taken as they are. Images and CIFAR batches are scaled to 0..1 and normalised with
    ``(x - mean) / std``. Images are resized to cover the target size, and cropped around their centre.

    Args:
        path: an ``.npz`` archive with ``x`` (or images, inputs, data) and, optionally, ``y`` (or labels, targets); or a
            folder of images, or of one folder of images per class; or a file or folder of CIFAR-10 or CIFAR-100
            batches, in the binary or the Python version.
        shape: shape of one sample, such as (C, H, W).
        mean: one value per channel, or one for all channels.
        std: one value per channel, or one for all channels.

    Raises:
        InputError: the data do not exist, cannot be read, have another shape, are empty, hold NaN or infinity, or have
            the same value everywhere.
    """
    path = Path(path)
    check_name(path)
    if not path.exists():
        raise InputError("no such data", file=path, remedy=_REMEDY)
    labels: npt.NDArray[np.int64] | None
    if is_cifar(path):
        inputs, labels = read_cifar(path)
        samples = Samples(normalised(inputs, mean, std), labels, path.name)
    elif path.is_dir():
        if not is_image_folder(path):
            raise InputError("holds no images and no CIFAR batches", file=path, remedy=_REMEDY)
        inputs, labels = read_images(path, shape)
        samples = Samples(normalised(inputs, mean, std), labels, path.name)
    else:
        samples = _archive(path)
    check_samples(samples, shape, path)
    return samples


def check_samples(samples: Samples, shape: Sequence[int], path: Path | None = None) -> None:
    """Check that samples fit the model's input, and that ranges can be calibrated with them.

    Raises:
        InputError: there are no samples, they have another shape, hold NaN or infinity, or have the same value
            everywhere.
    """
    inputs = samples.inputs
    if not len(inputs):
        raise InputError("holds no samples", file=path, remedy="give at least one, better some hundreds")
    if inputs.shape[1:] != tuple(shape):
        found, wanted = list(inputs.shape[1:]), list(shape)
        raise InputError(f"has samples of shape {found}, the model takes {wanted}", file=path)
    if inputs.dtype.kind == "f":
        finite = np.isfinite(inputs.reshape(len(inputs), -1)).all(axis=1)
        if not finite.all():
            first, bad = int(np.argmin(finite)), int((~finite).sum())
            raise InputError(
                f"holds NaN or infinity in {bad} of {len(inputs)} samples, first in sample {first}",
                file=path,
                remedy="leave those samples out",
            )
    # With one value everywhere every range would be a point, and every scale 0.
    if inputs.size and inputs.min() == inputs.max():
        raise InputError(
            f"is constant: every value is {inputs.flat[0]:g}, so there is no range to calibrate", file=path,
            remedy="give samples like those that the model will see in use",
        )  # fmt: skip


def _archive(path: Path) -> Samples:
    """The samples of an ``.npz`` archive, with or without labels."""
    inputs, labels, names = read_arrays(path)
    if inputs is None:
        raise InputError(f"holds {', '.join(names) or 'nothing'}, expected x (and y)", file=path, remedy=_REMEDY)
    return Samples(inputs.astype(np.float32), labels, path.name)


def normalised(images: npt.NDArray[np.uint8], mean: Sequence[float], std: Sequence[float]) -> npt.NDArray[np.float32]:
    """Images, uint8 [N, C, H, W], as ``(x / 255 - mean) / std`` in float32.

    Raises:
        InputError: ``mean`` or ``std`` has a wrong number of values, or ``std`` is not positive.
    """
    channels = images.shape[1]
    for name, values in (("--mean", mean), ("--std", std)):
        if len(values) not in (1, channels):
            raise InputError(f"{name} has {len(values)} values, the images have {channels} channels")
    if not all(value > 0 for value in std):
        raise InputError(f"--std {' '.join(map(str, std))}: not positive")
    centre, scale = (np.asarray(values, np.float32).reshape(-1, 1, 1) for values in (mean, std))
    return ((images.astype(np.float32) / np.float32(255)) - centre) / scale

"""Training data: CIFAR batches, a folder with one folder of images per class, or an ``.npz`` of x and y.

The order of the samples and their augmentation depend on the seed and the epoch alone. The number of processes does
not change them, nor does it matter where an interrupted training continues. Reading data executes nothing in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from trtkp.data.cifar import is_cifar, read_cifar
from trtkp.data.images import image_files, is_image_folder, open_image
from trtkp.data.labelled import read_arrays
from trtkp.data.samples import normalised
from trtkp.errors import InputError
from trtkp.files import check_name
from trtkp.pruning.train.recipe import Preprocessing

if TYPE_CHECKING:
    import torch

    from trtkp.pruning.train.processes import Processes

__all__ = ["Arrays", "DataSplit", "Dataset", "Loader", "load_split"]

_REMEDY = "give an .npz of x and y, a folder with one folder of images per class, or a folder of CIFAR batches"
_TEST_FILES = ("test_batch", "test_batch.bin", "test", "test.bin")
_TEST_FOLDERS = ("val", "test")
#: Threads that decode images. Pillow releases Python's lock while it decodes, so they do run side by side.
_DECODERS = 8


@dataclass(frozen=True)
class Draw:
    """How the samples of a batch are augmented: one set of random numbers per sample."""

    flip: npt.NDArray[np.bool_]
    """Whether to mirror the image left to right, [N]."""
    shift: npt.NDArray[np.int64]
    """Row and column at which the padded image is cropped, [2, N]."""
    seeds: npt.NDArray[np.int64]
    """Seed of the random crop of an image file, [N]."""


class Dataset(Protocol):
    """Labelled samples."""

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """The class of every sample, [N]."""

    def read(self, chosen: npt.NDArray[np.int64], draw: Draw | None) -> npt.NDArray[np.float32]:
        """Inputs [n, C, H, W] of the samples with the indices ``chosen`` [n], augmented as ``draw`` says."""

    def digest(self) -> str:
        """A hash of the data; a checkpoint is refused if it was trained on other data."""

    def subset(self, chosen: npt.NDArray[np.int64]) -> Dataset:
        """The samples with the indices ``chosen``."""


@dataclass(frozen=True)
class Arrays:
    """Samples in memory. Images in uint8 are scaled to 0..1 and normalised; floats are taken as they are."""

    inputs: npt.NDArray[Any]
    labels: npt.NDArray[np.int64]
    how: Preprocessing = field(default_factory=Preprocessing)

    def read(self, chosen: npt.NDArray[np.int64], draw: Draw | None) -> npt.NDArray[np.float32]:
        """See `Dataset.read`."""
        batch = self.inputs[chosen]
        if draw is not None:
            batch = _cropped(batch, draw.shift, self.how.pad)
            batch = np.where(draw.flip.reshape(-1, *[1] * (batch.ndim - 1)), batch[..., ::-1], batch)
        if batch.dtype == np.uint8 and batch.ndim == 4:
            return normalised(batch, self.how.mean, self.how.std)
        return np.ascontiguousarray(batch, np.float32)

    def digest(self) -> str:
        """See `Dataset.digest`."""
        digest = sha256(f"{self.inputs.dtype}{self.inputs.shape}".encode())
        digest.update(np.ascontiguousarray(self.inputs).data)
        digest.update(np.ascontiguousarray(self.labels).data)
        return digest.hexdigest()

    def subset(self, chosen: npt.NDArray[np.int64]) -> Arrays:
        """See `Dataset.subset`."""
        return Arrays(self.inputs[chosen], self.labels[chosen], self.how)


@dataclass(frozen=True)
class Folder:
    """Image files, decoded whenever they are read; a set like ImageNet does not fit into memory."""

    files: Sequence[Path]
    labels: npt.NDArray[np.int64]
    shape: tuple[int, int, int]
    how: Preprocessing

    def read(self, chosen: npt.NDArray[np.int64], draw: Draw | None) -> npt.NDArray[np.float32]:
        """See `Dataset.read`."""
        with ThreadPoolExecutor(_DECODERS) as pool:
            if draw is None or not self.how.resized_crop:
                images = list(pool.map(lambda i: open_image(self.files[i], self.shape, self._middle), chosen))
            else:
                images = list(pool.map(lambda i, seed: self._random_crop(self.files[i], seed), chosen, draw.seeds))
        fixed = Arrays(np.stack(images), self.labels[chosen], self.how)
        return fixed.read(np.arange(len(chosen)), draw)

    @property
    def _middle(self) -> float:
        """Side of the central crop that is evaluated, as a share of the resized image's side.

        224 of 256 pixels is the usual evaluation of nets that were trained with resized crops on ImageNet.
        """
        return 224 / 256 if self.how.resized_crop else 1.0

    def _random_crop(self, file: Path, seed: int) -> npt.NDArray[np.uint8]:
        """A random crop of 8 to 100 % of the area with an aspect ratio of 3/4 to 4/3, usual on ImageNet."""
        rng = np.random.default_rng(int(seed))

        def box(width: int, height: int) -> tuple[int, int, int, int]:
            # as torchvision's RandomResizedCrop: ten attempts, then the central square
            for _ in range(10):
                area = width * height * rng.uniform(0.08, 1)
                ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
                w, h = round(float(np.sqrt(area * ratio))), round(float(np.sqrt(area / ratio)))
                if 0 < w <= width and 0 < h <= height:
                    left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
                    return left, top, left + w, top + h
            side = min(width, height)
            left, top = (width - side) // 2, (height - side) // 2
            return left, top, left + side, top + side

        return open_image(file, self.shape, box=box)

    def digest(self) -> str:
        """See `Dataset.digest`. It covers names and sizes: hashing the content would read the whole set."""
        return sha256(
            "".join(f"{f.parent.name}/{f.name} {f.stat().st_size}\n" for f in self.files).encode()
        ).hexdigest()

    def subset(self, chosen: npt.NDArray[np.int64]) -> Folder:
        """See `Dataset.subset`."""
        return Folder([self.files[i] for i in chosen], self.labels[chosen], self.shape, self.how)


@dataclass(frozen=True)
class DataSplit:
    """The two parts of the data: samples to train with, and samples to measure accuracy on."""

    train: Dataset
    test: Dataset

    def digest(self) -> str:
        """A hash of both parts."""
        return sha256(f"{self.train.digest()}{self.test.digest()}".encode()).hexdigest()


def load_split(path: str | PathLike[str], shape: Sequence[int], how: Preprocessing, seed: int = 0) -> DataSplit:
    """Read the data and split it into training and test data.

    CIFAR folders have a test batch, image folders have ``train/`` and ``val/`` (or ``test/``), and archives have
    ``x_test`` and ``y_test``. If there is no test data, a random share of the training data is held out.

    Args:
        path: an ``.npz``, a folder with one folder of images per class, or a folder of CIFAR batches.
        shape: shape of one sample as the model takes it, without the batch: (C, H, W) for images.
        how: normalisation, augmentation and the share to hold out.
        seed: seed of the choice of samples that are held out.

    Raises:
        InputError: the data is missing, unreadable or unlabelled, or its samples have another shape.
    """
    path = Path(path)
    check_name(path)
    if not path.exists():
        raise InputError("no such data", file=path, remedy=_REMEDY)
    if path.is_dir():
        train, test = _cifar(path, how) or _folders(path, tuple(shape), how)
    else:
        train, test = _archive(path, how)
    if isinstance(train, Arrays) and train.inputs.shape[1:] != tuple(shape):
        raise InputError(
            f"has samples of shape {list(train.inputs.shape[1:])}, the model takes {list(shape)}", file=path
        )
    if test is None:
        # 0x40 keeps these numbers apart from those of an epoch, whose seed is [seed, epoch]
        order = np.random.default_rng([seed, 0x40]).permutation(len(train.labels))
        held = round(how.holdout * len(order))
        if not 0 < held < len(order):
            raise InputError(
                f"has {len(order)} samples, none of them to measure accuracy on",
                file=path,
                remedy="add x_test and y_test, or a val/ folder",
            )
        train, test = train.subset(np.sort(order[held:])), train.subset(np.sort(order[:held]))
    return DataSplit(train, test)


def _cifar(path: Path, how: Preprocessing) -> tuple[Dataset, Dataset | None] | None:
    inner = [folder for folder in sorted(path.glob("cifar-*")) if folder.is_dir()]
    folder = next((one for one in (path, *inner) if is_cifar(one)), None)
    if folder is None:
        return None
    tests = [folder / name for name in _TEST_FILES if is_cifar(folder / name)]
    return Arrays(*read_cifar(folder), how), Arrays(*read_cifar(tests[0]), how) if tests else None


def _folders(path: Path, shape: tuple[int, ...], how: Preprocessing) -> tuple[Dataset, Dataset | None]:
    train = path / "train" if (path / "train").is_dir() else path
    tests = [path / name for name in _TEST_FOLDERS if train != path and (path / name).is_dir()]
    if not train.is_dir() or not is_image_folder(train):
        raise InputError("holds no images and no CIFAR batches", file=path, remedy=_REMEDY)
    return _folder(train, shape, how), _folder(tests[0], shape, how) if tests else None


def _folder(path: Path, shape: tuple[int, ...], how: Preprocessing) -> Folder:
    files, labels = image_files(path)
    if labels is None:
        raise InputError("its images have no classes", file=path, remedy="put them in one folder per class")
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise InputError(f"the model takes {list(shape)}, not images of 1 or 3 channels", file=path)
    return Folder(files, labels, (shape[0], shape[1], shape[2]), how)


def _archive(path: Path, how: Preprocessing) -> tuple[Dataset, Dataset | None]:
    inputs, labels, names = read_arrays(path)
    if inputs is None or labels is None or not len(labels):
        raise InputError(f"holds {', '.join(names) or 'nothing'}, expected x and y", file=path, remedy=_REMEDY)
    if inputs.dtype.kind == "f" and not np.isfinite(inputs).all():
        raise InputError("holds NaN or infinity", file=path, remedy="leave those samples out")
    if not {"x_test", "y_test"} <= set(names):
        return Arrays(inputs, labels, how), None
    others, classes, _ = read_arrays(path, "_test")
    assert others is not None
    assert classes is not None
    test = Arrays(others, classes, how)
    if test.inputs.shape[1:] != inputs.shape[1:] or test.labels.shape != test.inputs.shape[:1] or not len(test.labels):
        raise InputError("the shapes of x_test, y_test and x do not match", file=path)
    return Arrays(inputs, labels, how), test


class Loader:
    """The batches of an epoch; each process gets its share of every batch.

    In training, a last batch with fewer than two samples per process is left out: batch normalisation needs two.

    Args:
        data: the samples.
        how: what augmentation there is.
        batch: global batch size, over all processes.
        seed: seed of order and augmentation.
        processes: the processes that train together; the loader serves this one.
        augment: shuffle, flip and crop. Without it, samples come in their order and as they are.

    Raises:
        InputError: with ``augment``, some process would get no samples.
    """

    def __init__(
        self, data: Dataset, how: Preprocessing, *, batch: int, seed: int, processes: Processes, augment: bool = True
    ) -> None:
        self._data, self._how, self._batch, self._seed = data, how, batch, seed
        self._processes, self._augment = processes, augment
        count = len(data.labels)
        least = 2 * processes.world if augment else 1
        self.batches = max(1, count // batch + (count % batch >= least)) if count else 0
        if augment and min(count, batch) < processes.world:
            raise InputError(
                f"{count} samples in batches of {batch} leave some of {processes.world} processes without any",
                remedy="give a larger --batch, or start fewer processes",
            )

    def __len__(self) -> int:
        return self.batches

    def epoch(self, number: int, first: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor, int]]:
        """Inputs, labels and the global number of samples of every batch from ``first`` on."""
        count = len(self._data.labels)
        rng = np.random.default_rng([self._seed, number])
        order = rng.permutation(count) if self._augment else np.arange(count)
        flip = (rng.random(count) < 0.5) & self._how.flip
        shift = rng.integers(0, 2 * self._how.pad + 1, (2, count))
        seeds = rng.integers(0, 1 << 62, count)

        def read(step: int) -> tuple[torch.Tensor, torch.Tensor, int]:
            import torch

            span = slice(step * self._batch, (step + 1) * self._batch)
            part = slice(self._processes.rank, None, self._processes.world)
            draw = Draw(flip[span][part], shift[:, span][:, part], seeds[span][part]) if self._augment else None
            chosen = order[span][part]
            inputs = torch.from_numpy(self._data.read(chosen, draw))
            return inputs, torch.from_numpy(self._data.labels[chosen]), len(order[span])

        # the last batch may hold fewer samples than there are processes: then the last processes have none of it
        mine = -(-(count - self._processes.rank) // self._batch)
        yield from _ahead(read, range(first, min(self.batches, mine)))


def _ahead(read: Callable[[int], Any], steps: range) -> Iterator[Any]:
    """The results of ``read`` in order. A thread reads the next two while the caller works on one."""
    with ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(read, step) for step in steps[:2]]
        for step in steps:
            done = waiting.pop(0)
            if step + 2 in steps:
                waiting.append(pool.submit(read, step + 2))
            yield done.result()


def _cropped(batch: npt.NDArray[Any], shift: npt.NDArray[np.int64], pad: int) -> npt.NDArray[Any]:
    """Pad every image of [N, C, H, W] with ``pad`` zeros on each side, and crop it at its shift, [2, N]."""
    if not pad or batch.ndim != 4:
        return batch
    height, width = batch.shape[2:]
    padded = np.pad(batch, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    rows = shift[0][:, None] + np.arange(height)
    columns = shift[1][:, None] + np.arange(width)
    picked = np.arange(len(batch))[:, None, None]
    cut: npt.NDArray[Any] = padded[picked, :, rows[:, :, None], columns[:, None, :]]  # [N, H, W, C]
    return cut.transpose(0, 3, 1, 2)

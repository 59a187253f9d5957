"""Data to train with: its parts, its order and augmentation, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trtkp.errors import InputError
from trtkp.pruning.train.data import Arrays, Loader, load_split
from trtkp.pruning.train.processes import Processes
from trtkp.pruning.train.recipe import Preprocessing

PLAIN = Preprocessing()


def processes(rank: int = 0, world: int = 1) -> Processes:
    group = Processes()
    group.rank, group.world = rank, world
    return group


def numbered(count: int) -> Arrays:
    """Sample i is an image full of i, with label i."""
    values = np.arange(count, dtype=np.float32)
    return Arrays(np.broadcast_to(values[:, None, None, None], (count, 1, 6, 6)).copy(), np.arange(count), PLAIN)


def cifar_batch(path: Path, count: int, labels: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 3072), np.uint8)
    path.write_bytes(pickle.dumps({"data": images, labels: rng.integers(0, 10, count).tolist()}, protocol=2))
    return images


@pytest.mark.parametrize(
    ("names", "test", "labels"),
    [(("data_batch_1", "data_batch_2"), "test_batch", "labels"), (("train",), "test", "fine_labels")],
)
def test_cifar_folders(tmp_path: Path, names: tuple[str, ...], test: str, labels: str) -> None:
    folder = tmp_path / "cifar-python"
    folder.mkdir()
    images = [cifar_batch(folder / name, 4, labels, i) for i, name in enumerate(names)]
    held = cifar_batch(folder / test, 3, labels, 9)
    how = Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    for path in (folder, tmp_path):
        parts = load_split(path, (3, 32, 32), how)
        assert len(parts.train.labels) == 4 * len(names)
        x = parts.test.read(np.arange(3), None)
        want = (held.reshape(3, 3, 32, 32) / 255 - np.reshape(how.mean, (3, 1, 1))) / np.reshape(how.std, (3, 1, 1))
        np.testing.assert_allclose(x, want, atol=1e-5)
        assert parts.train.read(np.arange(4), None)[0, 0, 0, 0] == pytest.approx((images[0][0, 0] / 255 - 0.5) / 0.2)


def test_folders_of_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for part, count in (("train", 4), ("val", 2)):
        for label in ("cat", "dog"):
            (tmp_path / part / label).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (20 + i, 24, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / label / f"{i}.png")
    for crop in (False, True):
        how = Preprocessing(resized_crop=crop, flip=True)
        parts = load_split(tmp_path, (3, 16, 16), how)
        assert parts.train.labels.tolist() == [0] * 4 + [1] * 4
        assert parts.test.labels.tolist() == [0, 0, 1, 1]
        epochs = [list(Loader(parts.train, how, batch=4, seed=1, processes=processes()).epoch(n)) for n in (0, 0, 1)]
        x = [epoch[0][0].numpy() for epoch in epochs]
        assert x[0].shape == (4, 3, 16, 16)
        assert np.array_equal(x[0], x[1])
        assert not np.array_equal(x[0], x[2])
        assert 0 <= x[0].min() < x[0].max() <= 1


def test_archive_with_and_without_a_test_part(tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).normal(size=(50, 1, 4, 4)).astype(np.float32), np.arange(50)
    np.savez(tmp_path / "one.npz", x=x, y=y)
    parts = load_split(tmp_path / "one.npz", (1, 4, 4), Preprocessing(holdout=0.2), seed=3)
    train, test = set(parts.train.labels.tolist()), set(parts.test.labels.tolist())
    assert len(test) == 10
    assert train | test == set(range(50))
    assert not train & test
    again = load_split(tmp_path / "one.npz", (1, 4, 4), Preprocessing(holdout=0.2), seed=3)
    assert again.digest() == parts.digest()
    np.savez(tmp_path / "two.npz", x=x, y=y, x_test=x[:7], y_test=y[:7])
    parts = load_split(tmp_path / "two.npz", (1, 4, 4), PLAIN)
    assert (len(parts.train.labels), len(parts.test.labels)) == (50, 7)


def test_processes_share_the_batches_of_one(tmp_path: Path) -> None:
    data, how = numbered(37), Preprocessing(flip=True, pad=2)
    alone = [labels.tolist() for _, labels, _ in Loader(data, how, batch=8, seed=4, processes=processes()).epoch(2)]
    assert sorted(label for labels in alone for label in labels) == list(range(37))
    shares = [
        list(Loader(data, how, batch=8, seed=4, processes=processes(rank, 2)).epoch(2)) for rank in (0, 1)
    ]  # fmt: skip
    for whole, one, other in zip(alone, *shares, strict=True):
        assert sorted(whole) == sorted(one[1].tolist() + other[1].tolist())
        assert one[2] == other[2] == len(whole)
        assert abs(len(one[1]) - len(other[1])) <= 1
    first = next(iter(Loader(data, how, batch=8, seed=4, processes=processes()).epoch(2)))
    for rank, share in enumerate(shares):
        assert np.array_equal(share[0][0].numpy(), first[0].numpy()[rank::2])


def test_a_last_batch_smaller_than_the_processes(tmp_path: Path) -> None:
    """In evaluation all samples count, and a process without a share of the last batch has one batch less."""
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for i in range(5):
            Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(tmp_path / label / f"{i}.png")
    data = load_split(tmp_path, (3, 8, 8), Preprocessing(holdout=0.1)).train
    assert len(data.labels) == 9
    shares = [
        list(Loader(data, PLAIN, batch=4, seed=0, processes=processes(rank, 4), augment=False).epoch(0))
        for rank in range(4)
    ]
    assert [[len(labels) for _, labels, _ in share] for share in shares] == [[1, 1, 1], [1, 1], [1, 1], [1, 1]]
    for batch, fewer in ((3, data), (16, data.subset(np.arange(3)))):
        with pytest.raises(InputError, match="leave some of 4 processes without any"):
            Loader(fewer, PLAIN, batch=batch, seed=0, processes=processes(0, 4))


def test_an_epoch_from_the_middle_is_the_rest_of_it() -> None:
    loader = Loader(numbered(40), Preprocessing(flip=True, pad=1), batch=8, seed=4, processes=processes())
    whole, rest = list(loader.epoch(1)), list(loader.epoch(1, 3))
    assert len(loader) == len(whole) == 5
    for one, other in zip(whole[3:], rest, strict=True):
        assert np.array_equal(one[0].numpy(), other[0].numpy())
        assert np.array_equal(one[1].numpy(), other[1].numpy())


def test_a_tail_too_small_for_batch_norm_is_left_out() -> None:
    for count, world, batches in ((17, 1, 2), (18, 1, 3), (18, 2, 2), (20, 2, 3), (3, 1, 1)):
        assert len(Loader(numbered(count), PLAIN, batch=8, seed=0, processes=processes(0, world))) == batches


def test_crops_and_flips() -> None:
    """Every training sample is a crop of the padded image, mirrored or not; all of them occur."""
    image = np.arange(1, 17, dtype=np.uint8).reshape(1, 1, 4, 4)
    data = Arrays(np.repeat(image, 400, axis=0), np.zeros(400, np.int64), Preprocessing(flip=True, pad=1))
    loader = Loader(data, data.how, batch=400, seed=0, processes=processes())
    seen = np.round(next(iter(loader.epoch(0)))[0].numpy()[:, 0] * 255).astype(int)
    padded = np.pad(image[0, 0], 1)
    crops = {tuple(padded[i : i + 4, j : j + 4].ravel()) for i in range(3) for j in range(3)}
    crops |= {tuple(np.reshape(crop, (4, 4))[:, ::-1].ravel()) for crop in crops}
    assert {tuple(one.ravel()) for one in seen} == crops


def test_what_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "flat").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "flat" / "a.png")
    np.savez(tmp_path / "x.npz", x=np.zeros((4, 1, 2, 2), np.float32))
    np.savez(tmp_path / "few.npz", x=np.ones((2, 1, 2, 2), np.float32), y=[0, 1])
    for name, message in (
        ("nothing", "no such data"),
        ("empty", "holds no images and no CIFAR batches"),
        ("flat", "its images have no classes; put them in one folder per class"),
        ("x.npz", "holds x, expected x and y"),
        ("few.npz", "has 2 samples, none of them to measure accuracy on"),
    ):
        with pytest.raises(InputError, match=message):
            load_split(tmp_path / name, (1, 2, 2), PLAIN)

"""``--data``: archives that are read without executing anything, and the accuracy on them."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.models import write_classifier
from trtkp.data.labelled import LabelledData, check_data, load_data
from trtkp.engine.accuracy import accuracy
from trtkp.engine.onnxruntime import OrtRunner
from trtkp.errors import InputError
from trtkp.shapes import Profile, ShapeRange

X, Y = np.zeros((4, 3, 8, 8), np.float32), np.arange(4)


@pytest.mark.parametrize(("x", "y"), [("x", "y"), ("images", "labels"), ("inputs", "targets"), ("data", "y")])
def test_names_of_the_arrays(tmp_path: Path, x: str, y: str) -> None:
    np.savez_compressed(tmp_path / "d.npz", **{x: X + 1, y: Y.astype(np.uint8), "more": np.ones(3)})
    data = load_data(tmp_path / "d.npz")
    np.testing.assert_array_equal(data.inputs, X + 1)
    np.testing.assert_array_equal(data.labels, Y)
    assert data.labels.dtype == np.int64


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": X}, r"holds x, expected x and y; save it with numpy\.savez"),
        ({}, "holds nothing, expected x and y"),
        ({"a": X, "b": Y}, "holds a, b, expected x and y"),
        ({"x": X, "y": Y[:3]}, r"x is float32\[4, 3, 8, 8\], y is int64\[3\]"),
        ({"x": X, "y": Y.astype(np.float32)}, "integer labels"),
        ({"x": X, "y": np.eye(4, dtype=np.int64)}, "integer labels"),
        ({"x": X[:0], "y": Y[:0]}, "integer labels"),
        ({"x": np.float32(1), "y": Y}, "expected"),
        ({"x": np.array(["a", "b", "c", "d"]), "y": Y}, "expected"),
        ({"x": np.array([{}] * 4, dtype=object), "y": Y}, "not a readable .npz archive"),
    ],
)
def test_archives_of_other_content(tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(InputError, match=words) as caught:
        load_data(tmp_path / "d.npz")
    assert caught.value.file == str(tmp_path / "d.npz")
    assert "\n" not in str(caught.value)


def test_files_that_are_no_archive(tmp_path: Path) -> None:
    np.savez(tmp_path / "good.npz", x=X, y=Y)
    good = (tmp_path / "good.npz").read_bytes()
    damaged = bytearray(good)
    damaged[len(good) // 2] ^= 1
    np.save(tmp_path / "single.npy", X)
    np.save(tmp_path / "pickled.npy", np.array([{}], dtype=object))
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as archive:
        archive.writestr("x", "text")
        archive.writestr("y", "text")
    files = {
        "empty": b"", "text": b"hello", "cut": good[: len(good) // 2], "damaged": bytes(damaged),
        "pickle": b"cos\nsystem\n(S'echo'\ntR.", "zip": b"PK\5\6" + bytes(18),
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for name in (*files, "single.npy", "pickled.npy", "text.npz", "absent", "."):
        with pytest.raises(InputError) as caught:
            load_data(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path))


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classifier(tmp_path_factory.mktemp("net") / "net.onnx", channels=(3, 4, 8))


def profile(low: int, high: int) -> Profile:
    return {"image": ShapeRange((low, 3, 8, 8), (high, 3, 8, 8), (high, 3, 8, 8))}


@pytest.mark.parametrize(("low", "high"), [(1, 64), (1, 3), (4, 4), (3, 5), (16, 16)])
def test_accuracy_over_batches_that_the_profile_allows(net: Path, low: int, high: int) -> None:
    images = np.random.default_rng(0).standard_normal((10, 3, 8, 8)).astype(np.float32)
    sizes: list[int] = []

    class Spy(OrtRunner):
        def run(self, feeds: Any) -> Any:
            sizes.append(len(feeds["image"]))
            return super().run(feeds)

    with Spy(net) as runner:
        labels = next(iter(runner.run({"image": images}).values())).argmax(axis=1).astype(np.int64)
        assert len(set(labels.tolist())) > 1
        sizes.clear()
        assert accuracy(runner, LabelledData(images, labels), profile(low, high)) == 1
        assert all(low <= size <= high for size in sizes)
        labels[[0, 9]] = (labels[[0, 9]] + 1) % 5  # the first and the last: padding must not count
        assert accuracy(runner, LabelledData(images, labels), profile(low, high)) == 0.8


def test_integer_images_are_cast(net: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (4, 3, 8, 8), np.uint8)
    with OrtRunner(net) as runner:
        labels = runner.run({"image": images.astype(np.float32)})["y"].argmax(axis=1).astype(np.int64)
        assert accuracy(runner, LabelledData(images, labels), profile(1, 64)) == 1


def test_data_that_does_not_fit(net: Path) -> None:
    with OrtRunner(net) as runner:
        for label in (5, -1):
            with pytest.raises(InputError, match=r"--data has labels .*, the model's first output is \[N, 5\]"):
                accuracy(runner, LabelledData(X[:1], np.array([label])), profile(1, 64))
        with pytest.raises(InputError, match=r"samples of shape \[8, 8\], the model takes \[3, 8, 8\]"):
            accuracy(runner, LabelledData(X[:, 0], Y), profile(1, 64))
    with pytest.raises(InputError, match="--data needs a model of one input, this one has 2"):
        check_data(LabelledData(X, Y), profile(1, 64) | {"other": ShapeRange((1,), (1,), (1,))})

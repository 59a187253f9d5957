"""Samples from files of the real formats, small; what cannot be used is refused in one line."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trtkp.data.cifar import read_pickle
from trtkp.data.samples import Samples, check_samples, load_samples
from trtkp.errors import InputError
from trtkp.shapes import ShapeRange

SHAPE = (3, 32, 32)
Array = np.ndarray[Any, Any]


def pixels(count: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), np.uint8)


# --- .npz -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labelled", [True, False])
def test_archive(tmp_path: Path, labelled: bool) -> None:
    x = np.random.default_rng(0).standard_normal((5, *SHAPE))
    np.savez(tmp_path / "d.npz", images=x, **({"labels": np.arange(5)} if labelled else {}))
    samples = load_samples(tmp_path / "d.npz", SHAPE)
    assert samples.inputs.dtype == np.float32
    np.testing.assert_array_equal(samples.inputs, x.astype(np.float32))
    assert (samples.labels is not None) == labelled
    assert (samples.labelled is not None) == labelled


def save(tmp_path: Path, x: Array, **more: Array) -> Path:
    np.savez(tmp_path / "d.npz", x=x, **more)
    return tmp_path / "d.npz"


def with_nan(x: Array) -> Array:
    x = x.copy()
    x[3, 0, 0, 0] = np.nan
    return x


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x[:0], "holds no samples"),
        (with_nan, "holds NaN or infinity in 1 of 5 samples, first in sample 3; leave those samples out"),
        (lambda x: x * np.inf, "holds NaN or infinity in 5 of 5 samples"),
        (lambda x: np.full_like(x, 0.25), "is constant: every value is 0.25, so there is no range to calibrate"),
        (lambda x: x[:, :1], r"has samples of shape \[1, 32, 32\], the model takes \[3, 32, 32\]"),
        (lambda x: x.astype(str), "expected"),
    ],
)
def test_unusable(tmp_path: Path, change: Any, words: str) -> None:
    x = np.random.default_rng(0).standard_normal((5, *SHAPE)).astype(np.float32)
    with pytest.raises(InputError, match=words) as error:
        load_samples(save(tmp_path, change(x)), SHAPE)
    assert "d.npz" in str(error.value)
    assert "\n" not in str(error.value)


def test_not_there_or_nothing_in_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such data"):
        load_samples(tmp_path / "none", SHAPE)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no images and no CIFAR batches"):
        load_samples(tmp_path / "empty", SHAPE)
    np.savez(tmp_path / "other.npz", z=np.ones(3))
    with pytest.raises(InputError, match=r"holds z, expected x \(and y\)"):
        load_samples(tmp_path / "other.npz", SHAPE)


# --- CIFAR ------------------------------------------------------------------------------------------------------------


def test_cifar_10_binary(tmp_path: Path) -> None:
    data, labels = pixels(6), np.array([3, 1, 4, 1, 5, 9], np.uint8)
    for i, part in enumerate((slice(0, 4), slice(4, 6)), 1):
        (tmp_path / f"data_batch_{i}.bin").write_bytes(np.concatenate([labels[part, None], data[part]], 1).tobytes())
    (tmp_path / "test_batch.bin").write_bytes(b"not read where there are training batches")
    samples = load_samples(tmp_path, SHAPE, mean=(0.5, 0.4, 0.3), std=(0.25,))
    assert samples.labels is not None
    assert samples.labels.tolist() == labels.tolist()
    want = (data.reshape(6, *SHAPE) / 255 - np.array([0.5, 0.4, 0.3])[:, None, None]) / 0.25
    np.testing.assert_allclose(samples.inputs, want, atol=1e-5)
    one = load_samples(tmp_path / "data_batch_2.bin", SHAPE)
    assert len(one.inputs) == 2


def test_cifar_100_binary_has_a_coarse_label_first(tmp_path: Path) -> None:
    data = pixels(3)
    records = np.concatenate([np.array([[7, 70], [8, 80], [9, 90]], np.uint8), data], axis=1)
    (tmp_path / "train.bin").write_bytes(records.tobytes())
    samples = load_samples(tmp_path, SHAPE)
    assert samples.labels is not None
    assert samples.labels.tolist() == [70, 80, 90]


def test_a_binary_batch_cut_short(tmp_path: Path) -> None:
    (tmp_path / "data_batch_1.bin").write_bytes(b"\0" * 3072)
    with pytest.raises(InputError, match="has 3072 bytes, not records of 3073"):
        load_samples(tmp_path, SHAPE)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("labels", ["labels", "fine_labels"])
def test_cifar_python(tmp_path: Path, protocol: int, labels: str) -> None:
    data = pixels(4)
    batch = {b"batch_label": b"training batch 1 of 5", labels.encode(): [1, 2, 3, 4], b"data": data,
             b"filenames": [b"a.png"] * 4}  # fmt: skip
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(batch, protocol=protocol))
    samples = load_samples(tmp_path, SHAPE)
    np.testing.assert_allclose(samples.inputs, data.reshape(4, *SHAPE) / np.float32(255), atol=1e-6)
    assert samples.labels is not None
    assert samples.labels.tolist() == [1, 2, 3, 4]


def test_cifar_python_as_python_2_wrote_it(tmp_path: Path) -> None:
    """Protocol 2 with str keys and an array whose bytes are a Python 2 string, opcode by opcode."""
    data = pixels(2)
    raw = data.tobytes()
    batch = b"".join([
        b"\x80\x02}(", b"U\x04data", b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01bt",
        b"R(K\x01(K\x02M\x00\x0ctcnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff",
        b"K\x00tb\x89T", len(raw).to_bytes(4, "little"), raw, b"tb", b"U\x06labels](K\x05K\x06eu.",
    ])  # fmt: skip
    (tmp_path / "data_batch_1").write_bytes(batch)
    samples = load_samples(tmp_path, SHAPE)
    np.testing.assert_array_equal(samples.inputs, data.reshape(2, *SHAPE).astype(np.float32) / np.float32(255))
    assert samples.labels is not None
    assert samples.labels.tolist() == [5, 6]


class Command:
    """Runs a command when it is unpickled."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call, self.arguments


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_hostile_pickle_runs_nothing(tmp_path: Path, protocol: int) -> None:
    witness = tmp_path / "ran"
    for call, arguments in (
        (os.system, (f"touch {witness}",)),
        (eval, (f"open({str(witness)!r}, 'w')",)),
        (np.load, (io.BytesIO,)),
        (np.memmap, (str(witness),)),
    ):
        batch = {b"data": Command(call, *arguments), b"labels": [1]}
        (tmp_path / "data_batch_1").write_bytes(pickle.dumps(batch, protocol=protocol))
        with pytest.raises(InputError, match=r"is a pickle that names .*, which is code|not a readable batch"):
            load_samples(tmp_path, SHAPE)
    assert not witness.exists()


@pytest.mark.parametrize(
    "pickled",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"cbuiltins\ngetattr\n.",
        b"cnumpy\nload\n.",
        b"c__main__\n__builtins__\n.",
        b"Pname\n.",
        b"\x80\x04\x8c\x0anumpy.core\x8c\x0bmultiarray.\x93.",
        b"\x80\x02\x82\x01.",
    ],
)
def test_no_name_but_those_of_arrays(pickled: bytes) -> None:
    with pytest.raises(InputError, match=r"which is code|not a readable batch"):
        read_pickle(pickled)


@pytest.mark.parametrize("size", [0, 1, 100, 3000])
def test_a_pickle_cut_short(tmp_path: Path, size: int) -> None:
    whole = pickle.dumps({b"data": pixels(2), b"labels": [1, 2]}, protocol=2)
    (tmp_path / "data_batch_1").write_bytes(whole[:size])
    with pytest.raises(InputError, match="not a readable batch"):
        load_samples(tmp_path, SHAPE)


@pytest.mark.parametrize(
    "batch",
    [
        [1, 2],
        {b"labels": [1]},
        {b"data": pixels(2).astype(np.int32), b"labels": [1, 2]},
        {b"data": pixels(2)[:, :9], b"labels": [1, 2]},
        {b"data": pixels(2), b"labels": [1]},
        {b"data": pixels(2), b"labels": [1, "2"]},
        {b"data": np.array([[None] * 3072]), b"labels": [1]},
    ],
)
def test_a_pickle_of_something_else(tmp_path: Path, batch: Any) -> None:
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(InputError, match="is not a CIFAR batch"):
        load_samples(tmp_path, SHAPE)


# --- images -----------------------------------------------------------------------------------------------------------


def test_images_with_a_folder_per_class(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for name, colour in (("b/1.png", (255, 0, 0)), ("a/2.JPG", (0, 255, 0)), ("a/1.png", (0, 0, 255))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        image.new("RGB", (90, 60), colour).save(tmp_path / name)
    (tmp_path / "a" / "notes.txt").write_text("no image")
    samples = load_samples(tmp_path, (3, 32, 48))
    assert samples.labels is not None
    assert samples.labels.tolist() == [0, 0, 1]  # a, a, b
    assert samples.inputs.shape == (3, 3, 32, 48)
    np.testing.assert_allclose(samples.inputs[0, 2], 1)
    np.testing.assert_allclose(samples.inputs[2, 0], 1)


def test_an_image_is_cut_around_its_middle(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    wide = np.zeros((32, 96), np.uint8)
    wide[:, 32:64] = 255
    image.fromarray(wide).save(tmp_path / "wide.png")
    image.fromarray(np.eye(32, dtype=np.uint8)).save(tmp_path / "x.png")
    samples = load_samples(tmp_path, (1, 32, 32))
    assert samples.labels is None
    np.testing.assert_allclose(samples.inputs[0], 1)


def test_a_broken_image(tmp_path: Path) -> None:
    pytest.importorskip("PIL.Image")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(InputError, match=r"a\.png: is no readable image"):
        load_samples(tmp_path, SHAPE)


def test_normalisation_that_cannot_be_meant(tmp_path: Path) -> None:
    (tmp_path / "data_batch_1.bin").write_bytes(np.concatenate([[[1]], pixels(1)], 1).astype(np.uint8).tobytes())
    with pytest.raises(InputError, match="--mean has 2 values, the images have 3 channels"):
        load_samples(tmp_path, SHAPE, mean=(0.1, 0.2))
    with pytest.raises(InputError, match=r"--std 0\.0: not positive"):
        load_samples(tmp_path, SHAPE, std=(0.0,))


# --- batches ----------------------------------------------------------------------------------------------------------


def test_spread_takes_from_the_whole_set() -> None:
    samples = Samples(np.arange(100, dtype=np.float32)[:, None], np.arange(100))
    few = samples.spread(4)
    assert few.inputs.ravel().tolist() == [0, 25, 50, 75]
    assert few.labels is not None
    assert few.labels.tolist() == [0, 25, 50, 75]
    assert samples.spread(100) is samples


def test_batches_fill_up_to_the_smallest_size() -> None:
    samples = Samples(np.arange(5, dtype=np.float32)[:, None])
    batches = list(samples.batches(ShapeRange((2, 1), (2, 1), (4, 1))))
    assert [(batch.ravel().tolist(), count) for batch, count in batches] == [([0, 1], 2), ([2, 3], 2), ([4, 4], 1)]


def test_the_digest_is_of_the_values() -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert Samples(x, name="a").digest == Samples(x.copy(), np.array([0, 1]), "b").digest
    assert Samples(x).digest != Samples(x.reshape(3, 2)).digest
    assert Samples(x).digest != Samples(x + 1).digest


def test_one_sample_is_enough() -> None:
    check_samples(Samples(np.arange(3, dtype=np.float32)[None]), (3,))

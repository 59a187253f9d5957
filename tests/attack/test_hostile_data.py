"""Hostile data, calibrations, allocations, index sets and recipes: one line each, in bounded time and memory."""

from __future__ import annotations

import io
import json
import os
import resource
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from trtkp.bundle.calibration import load_calibration
from trtkp.cli import main
from trtkp.data.labelled import load_data
from trtkp.data.samples import load_samples
from trtkp.errors import InputError
from trtkp.files import parse_json
from trtkp.index.storage import FORMAT, load_index_sets, save_index_sets
from trtkp.pruning.methods.allocation import load_allocation
from trtkp.pruning.train.data import load_split
from trtkp.pruning.train.recipe import Preprocessing, read_recipe

ROOT = Path(__file__).parents[2]
SHAPE = (3, 8, 8)
#: Address space of a child that reads hostile files. NumPy and Pillow alone take about 0.5 GB of it.
LIMIT = 2 << 30

# --- archives ---------------------------------------------------------------------------------------------------------


def npy(descr: str = "<f4", fortran: bool = False, shape: str = "(4, 3, 8, 8)", data: bytes = b"") -> bytes:
    """A file of one array whose header says what is given, whatever the data."""
    header = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def archive(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """A ZIP archive."""
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


LABELS = npy("'<i8'", shape="(4,)", data=bytes(32))
ARRAYS = {
    "huge": npy("'<f4'", shape="(1099511627776, 3, 8, 8)"),
    "huge product": npy("'<f4'", shape="(4294967296, 4294967296, 4294967296)"),
    "negative": npy("'<f4'", shape="(-4, 3, 8, 8)"),
    "floats as sizes": npy("'<f4'", shape="(4.0, 3, 8, 8)"),
    "no tuple": npy("'<f4'", shape="12"),
    "objects": npy("'|O'"),
    "text": npy("'<U4'", data=bytes(4 * 4 * 192 * 4)),
    "records": npy("[('a', '<f4'), ('b', '<i4')]"),
    "code": npy("__import__('os').system('touch executed')"),
    "deep": npy("(" * 5_000 + ")" * 5_000),
    "short": npy("'<f4'", data=bytes(100)),
    "nothing": b"",
    "no array": b"text",
    "too long a header": b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b"{",
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_that_are_none(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = archive(tmp_path / "d.npz", {"x.npy": ARRAYS[kind], "y.npy": LABELS})
    for read in (
        lambda: load_data(file),
        lambda: load_samples(file, SHAPE),
        lambda: load_split(file, SHAPE, Preprocessing()),
    ):
        with pytest.raises(InputError) as caught:
            read()
        assert caught.value.file == str(file)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


def test_column_order_is_read(tmp_path: Path) -> None:
    x = np.asfortranarray(np.random.default_rng(0).standard_normal((40, *SHAPE), np.float32))
    np.savez(tmp_path / "d.npz", x=x, y=np.zeros(40, np.int64))  # and labels of one class
    assert np.array_equal(load_data(tmp_path / "d.npz").inputs, x)
    assert len(load_split(tmp_path / "d.npz", SHAPE, Preprocessing()).train.labels) > 0


def test_archive_that_unpacks_to_too_much(tmp_path: Path) -> None:
    head, block, blocks = npy("'<f4'", shape="(524288, 3, 8, 8)"), bytes(1 << 20), 300
    with zipfile.ZipFile(tmp_path / "d.npz", "w", zipfile.ZIP_DEFLATED) as file, file.open("x.npy", "w") as member:
        member.write(head)
        for _ in range(blocks):
            member.write(block)
    assert (tmp_path / "d.npz").stat().st_size < 1 << 20
    with pytest.raises(InputError, match=r"x\.npy unpacks to 314,572,928 bytes from .*; save it without compression"):
        load_data(tmp_path / "d.npz")


def test_well_packed_data_is_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "d.npz", x=np.zeros((5000, 3, 32, 32), np.float32), y=np.zeros(5000, np.int64))
    assert len(load_data(tmp_path / "d.npz").labels) == 5000


# --- labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, 5], "has labels 0..5, the model's classes are 0..4"),
        ([-1, 4], "has labels -1..4, the model's classes are 0..4"),
        ([0, 2**62], "has labels 0..4611686018427387904, the model's classes are 0..4"),
        ([0.0, float("nan")], "expected [N, ...] and integer labels [N]"),
        ([[0], [1]], "expected [N, ...] and integer labels [N]"),
        ([], "expected [N, ...] and integer labels [N]"),
        (["a", "b"], "expected [N, ...] and integer labels [N]"),
    ],
)
def test_labels_are_checked_before_the_work(
    folder: Path, labels: list[Any], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("trtkp.pipeline.build.prune", "trtkp.pipeline.finish.quantise"):
        monkeypatch.setattr(name, lambda *_, **__: pytest.fail("the work was begun"), raising=False)
    np.savez("bad.npz", x=np.random.default_rng(0).standard_normal((2, *SHAPE), np.float32), y=np.array(labels))
    for line in (
        "build net.onnx -b onnxruntime --data bad.npz -o new",
        "build net.onnx -b onnxruntime -p int8 --data bad.npz -o new",
        "calibrate dense --data bad.npz -o new",
    ):
        assert main(line.split()) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert words in error
    assert not Path("new").exists()


def test_samples_that_are_none(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for x, words in (
        (np.zeros((0, *SHAPE), np.float32), "holds no samples"),
        (np.full((2, *SHAPE), np.nan, np.float32), "holds NaN or infinity in 2 of 2"),
        (np.zeros((2, *SHAPE), np.complex64), "expected [N, ...]"),
    ):
        np.savez("bad.npz", x=x)
        assert main(["calibrate", "dense", "--data", "bad.npz", "-o", "new"]) == 2
        assert words in capsys.readouterr().err


# --- images -----------------------------------------------------------------------------------------------------------


def png(width: int, height: int) -> bytes:
    """A PNG of any size in a few bytes: its data are missing or unpack to zeros."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(bytes(1 << 20), 9)
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def resized(kind: str, width: int, height: int) -> bytes:
    """A small image of another format, with another size in its header."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, kind)
    data = bytearray(file.getvalue())
    if kind == "GIF":
        data[6:10] = struct.pack("<HH", width, height)
        at = data.index(b",", 13)
        data[at + 5 : at + 9] = struct.pack("<HH", width, height)
    elif kind == "BMP":
        data[18:26] = struct.pack("<ii", width, height)
    else:
        at = data.index(b"\xff\xc0")
        data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


_READ = """
import sys
from trtkp.data.samples import load_samples
from trtkp.errors import InputError
for name in sys.argv[1:]:
    try:
        load_samples(name, (3, 8, 8))
        print("read")
    except InputError as error:
        print(error)
"""


def limited(code: str, *arguments: str) -> list[str]:
    """Lines that a program prints in a child whose memory is limited."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT)),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_images_that_unpack_to_too_much(tmp_path: Path) -> None:
    side = 30_000
    images = {
        "a.png": png(side, side),
        "b.gif": resized("GIF", side, side),
        "c.bmp": resized("BMP", side, side),
        "d.jpg": resized("JPEG", side, side),
        "e.png": png(2**31 - 1, 2**31 - 1),
        "f.png": png(9_000, 9_000),  # as many as Pillow unpacks without a word
        "g.png": b"\x89PNG\r\n\x1a\n",
    }
    for name, content in images.items():
        folder = tmp_path / name[0]
        folder.mkdir()
        (folder / name).write_bytes(content)
    lines = limited(_READ, *[str(tmp_path / name[0]) for name in images])
    assert len(lines) == len(images), lines
    for name, line in zip(images, lines, strict=True):
        assert line.startswith(f"{tmp_path / name[0] / name}: "), line
    for line in lines[:5]:
        assert "has more pixels than" in line, line


def test_archives_in_bounded_memory(tmp_path: Path) -> None:
    files = [archive(tmp_path / f"{i}.npz", {"x.npy": content}) for i, content in enumerate(ARRAYS.values())]
    lines = limited(_READ, *map(str, files))
    assert len(lines) == len(files)
    assert not [line for line in lines if not line.startswith(str(tmp_path))]


# --- JSON and YAML ----------------------------------------------------------------------------------------------------

JSON = {
    "deep lists": "[" * 200_000,
    "deep objects": '{"a":' * 200_000,
    "deep and whole": "[" * 100_000 + "]" * 100_000,
    "a huge number": '{"version": ' + "9" * 100_000 + "}",
    "a huge exponent": '{"version": 1e999999999}',
    "NaN": '{"version": NaN}',
    "infinity": '{"version": -Infinity}',
    "a name twice": '{"format": "trtkp.calibration", "format": "trtkp.calibration"}',
    "half a surrogate": '{"format": "\\ud800"}',
    "not UTF-8": b"\xff\xfe".decode("latin-1"),
    "a zero byte": "\0",
    "a list": "[]",
    "nothing": "",
}


@pytest.mark.parametrize("kind", JSON)
@pytest.mark.parametrize(
    "read",
    [load_calibration, load_allocation, lambda path: load_allocation(path, "vskp", ratio=0.5)],
    ids=["c", "a", "r"],
)
def test_json_that_is_none_of_ours(tmp_path: Path, kind: str, read: Callable[[Path], object]) -> None:
    file = tmp_path / "file.json"
    file.write_text(JSON[kind], encoding="latin-1")
    with pytest.raises(InputError) as caught:
        read(file)
    assert "file.json" in str(caught.value)
    assert len(str(caught.value)) < 500


def test_json_is_read_strictly() -> None:
    assert parse_json('{"a": [1, 2.5, null]}') == {"a": [1, 2.5, None]}
    for text in ('{"a": 1, "a": 1}', "NaN", '{"a": Infinity}', "[" * 10**6):
        with pytest.raises(ValueError, match=r"twice|is not JSON|deeply"):
            parse_json(text)


def test_calibration_with_changed_values(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ranges that contradict each other, and names that the graph does not have."""
    line = "build net.onnx -b onnxruntime --share per-layer --lowering taps -p int8 -o new --calibration changed.json"
    good = json.loads(Path("int8/calibration.json").read_text())
    tensor, layer = next(iter(good["tensors"])), next(iter(good["layers"]))
    huge = 10**400
    for where, key, value in (
        (("tensors", tensor), "amax", "NaN"), (("tensors", tensor), "amax", -1.0), (("tensors", tensor), "amax", huge),
        (("tensors",), tensor, {"low": 0.0, "high": 1.0, "amax": huge}),
        (("tensors", tensor), "low", 1e30), (("tensors", tensor), "high", None), (("tensors", tensor), "scale", 0.0),
        (("tensors",), tensor, {}), (("layers",), layer, 3),
        (("layers",), "nobody", good["layers"][layer]), ((), "kind", "int4"), ((), "form", "x" * 10_000),
        ((), "version", huge), ((), "tensors", {}), ((), "layers", {}), ((), "percentile", 1e400),
    ):  # fmt: skip
        changed: Any = json.loads(json.dumps(good))
        inner = changed
        for name in where:
            inner = inner[name]
        inner[key] = value
        Path("changed.json").write_text(json.dumps(changed).replace('"NaN"', "NaN"))
        status = main(line.split())
        out, error = capsys.readouterr()
        assert status == 2, (where, key, value, error[:300])
        assert out == ""
        assert error.count("\n") == 1
        assert "calibration" in error, error
        assert "internal error" not in error
    assert not Path("new").exists()


YAML = {
    "billion laughs": "a: &a [x,x]\n"
    + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)},*{chr(97 + i)}]\n" for i in range(24)),
    "itself": "a: &a [*a]",
    "deep": "[" * 5_000,
    "deep maps": "{a: " * 5_000,
    "large": "a: " + "x" * (1 << 20),
    "code": "a: !!python/object/apply:os.system ['touch executed']",
    "a date": "a: 2020-99-99",
    "a huge number": "method: kep\nsettings: {n: " + "9" * 10_000 + "}",
    "a list": "[1, 2]",
    "keys that are lists": "? [1]\n: 2",
    "binary": "\x01",
}


@pytest.mark.parametrize("kind", YAML)
def test_recipes_that_are_none(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "recipe.yaml"
    file.write_text(YAML[kind])
    with pytest.raises(InputError) as caught:
        read_recipe(file)
    assert str(caught.value).startswith(str(file))
    assert len(str(caught.value)) < 500 + len(str(file))
    assert not (tmp_path / "executed").exists()


# --- index sets -------------------------------------------------------------------------------------------------------


def tensors(header: dict[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(begin: int, end: int, shape: list[int], dtype: str = "I32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


INDEX_FILES = {
    "a header of 2^60 bytes": tensors(b"{}", length=2**60),
    "a header of 2^64 - 1 bytes": tensors(b"{}", length=2**64 - 1),
    "deep": tensors(b'{"a":' * 100_000),
    "a deep header": tensors({"__metadata__": {FORMAT: "[" * 100_000}}),
    "overlapping": tensors({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, bytes(12)),
    "beyond the end": tensors({"a": entry(0, 2**60, [2**58])}, bytes(8)),
    "an overflow": tensors({"a": entry(0, 8, [2**62, 2**62])}, bytes(8)),
    "backwards": tensors({"a": entry(8, 0, [2])}, bytes(8)),
    "a type that NumPy lacks": tensors({"a": entry(0, 8, [8], "F8_E4M3")}, bytes(8)),
    "an unknown type": tensors({"a": entry(0, 8, [8], "X9")}, bytes(8)),
    "a version": tensors({"__metadata__": {FORMAT: '{"version": 99999999999999999999}'}}),
    "a name twice": tensors({"__metadata__": {FORMAT: '{"version": 1, "version": 1}'}}),
    "NaN": tensors({"__metadata__": {FORMAT: '{"version": NaN}'}}),
    "huge shapes": tensors({"__metadata__": {FORMAT: json.dumps({"version": 1, "sha256": "", "layers": {
        "w": {"shape": [2**60, 2**60, 3, 3], "groups": 1, "kind": "kernel"}}})}}),
}  # fmt: skip


@pytest.mark.parametrize("kind", INDEX_FILES)
def test_index_files_that_are_none(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "index.safetensors"
    file.write_bytes(INDEX_FILES[kind])
    with pytest.raises(InputError) as caught:
        load_index_sets(file)
    assert caught.value.file == str(file)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("array", ["filters", "group_ptr", "entry_ptr", "channel", "taps"])
def test_indices_that_contradict_each_other(folder: Path, array: str) -> None:
    """Each array with its values out of range, out of order, repeated, of another type and of another length."""
    from dataclasses import replace

    sets = load_index_sets("gather/index_sets.safetensors")
    name = next(iter(sets))
    good = getattr(sets[name], array)
    top = np.iinfo(good.dtype).max
    for bad in (
        np.full_like(good, top), np.zeros_like(good) + good[:1], good[:-1].copy(), good[:0].copy(),
        np.concatenate([good, good]), good.astype(np.float32), good.astype(np.int64), good[None].copy(),
    ):  # fmt: skip
        if bad.dtype == good.dtype and bad.shape == good.shape and np.array_equal(bad, good):
            continue
        try:
            save_index_sets("bad.safetensors", {name: replace(sets[name], **{array: bad})})  # type: ignore[arg-type]
        except (InputError, ValueError, TypeError, IndexError):
            continue  # it cannot even be written
        with pytest.raises(InputError):
            load_index_sets("bad.safetensors")


# --- graphs without values, and of any size ---------------------------------------------------------------------------


def convolution(path: str, weight: tuple[int, ...], x: list[Any]) -> None:
    """A graph of one convolution."""
    node = helper.make_node("Conv", ["x", "w"], ["y"], "c", pads=[1] * 4)
    infos = (
        [helper.make_tensor_value_info("x", 1, x)],
        [helper.make_tensor_value_info("y", 1, ["N", weight[0], "H", "W"])],
    )
    graph = helper.make_graph([node], "g", *infos, [numpy_helper.from_array(np.ones(weight, np.float32), "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


@pytest.mark.parametrize(
    ("weight", "x", "words"),
    [
        ((0, 3, 3, 3), ["N", 3, 8, 8], "layer w: its weight [0, 3, 3, 3] has no values"),
        ((4, 0, 3, 3), ["N", "C", 8, 8], "layer w: its weight [4, 0, 3, 3] has no values"),
        ((4, 3, 0, 0), ["N", 3, 8, 8], "layer w: its weight [4, 3, 0, 0] has no values"),
        ((4, 3, 3, 3), ["N", 3, 100_000, 100_000], "has 240,000,000,000 values, an input may have 2,147,483,647"),
        ((4, 3, 3, 3), ["N", 3, 2**40, 8], "values, an input may have 2,147,483,647; give a smaller --opt"),
        ((4, 3, 3, 3), [2**40, 3, 8, 8], "values, an input may have 2,147,483,647; give a smaller --opt"),
    ],
)
def test_graphs_of_odd_sizes(
    tmp_path: Path, weight: tuple[int, ...], x: list[Any], words: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    convolution("net.onnx", weight, x)
    shape = ["--input-shape", "1x4x8x8"] if "C" in x else []
    for line in (
        ["build", "net.onnx", "-b", "onnxruntime", "-o", "new", *shape],
        ["prune", "net.onnx", "--method", "kep", "-o", "new", *shape],
        ["advise", "net.onnx", *(["--opt", "1x4x8x8"] if shape else [])],
    ):
        assert main(line) == 2
        out, error = capsys.readouterr()
        assert out == ""
        assert error.count("\n") == 1
        assert words in error
        assert "internal error" not in error
    assert os.listdir() == ["net.onnx"]  # noqa: PTH208

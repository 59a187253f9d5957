"""Index sets on disk: exact round trip, stable bytes, and refusal of everything else."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from trtkp.errors import InputError
from trtkp.index.index_set import IndexSet, from_mask
from trtkp.index.storage import ARRAYS, FORMAT, load_index_sets, save_index_sets

Tensors = dict[str, np.ndarray[Any, Any]]
NAME = "stage.0.conv.weight"


def same(left: dict[str, IndexSet], right: dict[str, IndexSet]) -> bool:
    return list(left) == sorted(right) and all(
        left[name].shape == right[name].shape
        and left[name].groups == right[name].groups
        and left[name].kind == right[name].kind
        and all(np.array_equal(getattr(left[name], a), getattr(right[name], a)) for a in ARRAYS)
        and all(getattr(left[name], a).dtype == getattr(right[name], a).dtype for a in ARRAYS)
        for name in right
    )


@pytest.fixture
def sets() -> dict[str, IndexSet]:
    rng = np.random.default_rng(0)
    return {
        NAME: from_mask(rng.random((6, 4, 3, 3)) < 0.5, groups=2),
        "a.weight": from_mask(np.ones((2, 3, 1, 1), bool)),
        "empty.weight": from_mask(np.zeros((2, 3, 5, 5), bool)),
    }


@pytest.fixture
def stored(sets: dict[str, IndexSet], tmp_path: Path) -> Path:
    save_index_sets(tmp_path / "sets.safetensors", sets)
    return tmp_path / "sets.safetensors"


def rewrite(path: Path, change: Callable[[Tensors, dict[str, Any]], None]) -> Path:
    """The file with arrays and header changed; the checksum stays unless ``change`` sets it."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(json.loads(raw[8 : 8 + length])["__metadata__"][FORMAT])
    tensors = load_file(path)
    change(tensors, header)
    save_file(tensors, path, {FORMAT: json.dumps(header)})
    return path


def test_round_trip(sets: dict[str, IndexSet], stored: Path) -> None:
    assert same(load_index_sets(stored), sets)
    assert set(load_file(stored)) == {f"{name}.{array}" for name in sets for array in ARRAYS}


def test_round_trip_of_any_mask(masks_and_groups: st.SearchStrategy[Any]) -> None:
    @settings(max_examples=30)
    @given(masks_and_groups, st.text(max_size=8))
    def check(case: tuple[np.ndarray[Any, Any], int], name: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "sets")
            save_index_sets(path, {name: from_mask(*case)})
            assert np.array_equal(load_index_sets(path)[name].mask(), case[0])

    check()


def test_no_layers(tmp_path: Path) -> None:
    save_index_sets(tmp_path / "sets", {})
    assert load_index_sets(tmp_path / "sets") == {}


def test_equal_input_gives_equal_bytes_in_every_process(
    sets: dict[str, IndexSet], stored: Path, tmp_path: Path
) -> None:
    save_index_sets(tmp_path / "again", dict(reversed(sets.items())))
    assert (tmp_path / "again").read_bytes() == stored.read_bytes()
    program = (
        "import sys\nfrom trtkp.index.storage import load_index_sets, save_index_sets\n"
        "save_index_sets(sys.argv[2], load_index_sets(sys.argv[1]))"
    )
    for number in range(3):
        other = tmp_path / f"other{number}"
        subprocess.run([sys.executable, "-c", program, str(stored), str(other)], check=True)
        assert other.read_bytes() == stored.read_bytes()


def set_array(name: str, value: Any) -> Callable[[Tensors, dict[str, Any]], None]:
    return lambda tensors, header: tensors.update({name: value(tensors[name])})


def set_layer(key: str, value: Any) -> Callable[[Tensors, dict[str, Any]], None]:
    return lambda tensors, header: header["layers"][NAME].update({key: value})


def replaced(array: np.ndarray[Any, Any], position: int, value: int) -> np.ndarray[Any, Any]:
    array = array.copy()
    array[position] = value
    return array


REFUSED: dict[str, tuple[str, Callable[[Tensors, dict[str, Any]], Any]]] = {
    "another version": ("version 2, this trtkp reads version 1", lambda t, h: h.update(version=2)),
    "no version": ("header of the index sets cannot be read", lambda t, h: h.pop("version")),
    "no checksum": ("header of the index sets cannot be read", lambda t, h: h.pop("sha256")),
    "another checksum": ("damaged", lambda t, h: h.update(sha256="0" * 64)),
    "missing array": (rf"array {NAME}\.taps is missing", lambda t, h: t.pop(f"{NAME}.taps")),
    "surplus array": (
        r"array spare\.taps is not announced", lambda t, h: t.update({"spare.taps": np.zeros(1, np.uint64)})
    ),
    "surplus array of a layer": (
        rf"array {NAME}\.extra is not announced", lambda t, h: t.update({f"{NAME}.extra": np.zeros(1)})
    ),
    "surplus layer": (r"array ghost\.channel is missing", lambda t, h: h["layers"].update(ghost=h["layers"][NAME])),
    "wrong dtype": (f"layer {NAME}: .*filters is int64|type I64", set_array(f"{NAME}.filters", np.int64)),
    "dtype of another array": (f"layer {NAME}: .*channel is int32", set_array(f"{NAME}.channel", np.int32)),
    "wrong rank": (f"layer {NAME}: .*filters is int32.2-d", set_array(f"{NAME}.filters", lambda a: a[None])),
    "unsorted": (f"layer {NAME}: .*ascending", set_array(f"{NAME}.channel", lambda a: replaced(a, 0, 3))),
    "duplicate channel": (f"layer {NAME}: .*unique", set_array(f"{NAME}.channel", lambda a: replaced(a, 1, a[0]))),
    "channel out of range": (f"layer {NAME}: .*channel 9", set_array(f"{NAME}.channel", lambda a: replaced(a, -1, 9))),
    "duplicate filter": (f"layer {NAME}: .*permutation", set_array(f"{NAME}.filters", lambda a: replaced(a, 0, a[1]))),
    "tap out of range": (f"layer {NAME}: .*beyond", set_array(f"{NAME}.taps", lambda a: replaced(a, 0, 1 << 9))),
    "entry without taps": (f"layer {NAME}: .*without taps", set_array(f"{NAME}.taps", lambda a: replaced(a, 0, 0))),
    "pointer out of range": (
        f"layer {NAME}: .*entry_ptr", set_array(f"{NAME}.entry_ptr", lambda a: replaced(a, -1, 99))
    ),
    "header lies about the kind": (f"layer {NAME}: kind is pattern, .* kernel", set_layer("kind", "kernel")),
    "header lies about the shape": (f"layer {NAME}: .*permutation", set_layer("shape", [8, 4, 3, 3])),
    "header lies about the groups": (f"layer {NAME}: .*ONNX group", set_layer("groups", 4)),
    "header lies within the rules": ("damaged", set_layer("shape", [6, 5, 3, 3])),
    "valid array of another mask": ("damaged", set_array(f"{NAME}.taps", lambda a: replaced(a, 0, a[0] ^ 3 or 3))),
    "shape of floats": ("header of the index sets cannot be read", set_layer("shape", [6.0, 4, 3, 3])),
    "shape of three": ("header of the index sets cannot be read", set_layer("shape", [6, 4, 3])),
    "no shape": ("header of the index sets cannot be read", set_layer("shape", None)),
    "groups as text": ("header of the index sets cannot be read", set_layer("groups", "2")),
    "groups as bool": ("header of the index sets cannot be read", set_layer("groups", value=True)),
    "kind as number": ("header of the index sets cannot be read", set_layer("kind", 1)),
    "huge shape": (f"layer {NAME}: ", set_layer("shape", [10**30, 4, 3, 3])),
    "negative shape": (f"layer {NAME}: .*weight shape", set_layer("shape", [6, -4, 3, 3])),
    "layers as list": ("header of the index sets cannot be read", lambda t, h: h.update(layers=[1])),
    "layer as list": ("header of the index sets cannot be read", lambda t, h: h["layers"].update({NAME: []})),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, stored: Path) -> None:
    message, change = REFUSED[case]
    with pytest.raises(InputError, match=message) as error:
        load_index_sets(rewrite(stored, change))
    assert error.value.file == str(stored)


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {},
        {"format": "pt"},
        {FORMAT: "no json"},
        {FORMAT: "[]"},
        {FORMAT: "3"},
        {FORMAT: "[" * 100_000},
        {FORMAT: '{"version": 1, "sha256": "", "layers": ' + "[" * 100_000 + "}"},
        {FORMAT: '{"version": ' + "1" * 10_000 + "}"},
    ],
    ids=str,
)
def test_foreign_header(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    path = tmp_path / "sets"
    save_file({"x": np.zeros(3, np.float32)}, path, metadata)
    with pytest.raises(InputError):
        load_index_sets(path)


def test_type_that_numpy_does_not_have(stored: Path) -> None:
    raw = stored.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + length].replace(b'"U16"', b'"BF16"')
    stored.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + length :])
    with pytest.raises(InputError, match=r"array .*\.channel is of type BF16"):
        load_index_sets(stored)


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(InputError, match=r"no such file|is a directory|readable"):
            load_index_sets(path)
    (tmp_path / "empty").touch()
    with pytest.raises(InputError, match=r"no such file|is a directory|readable"):
        load_index_sets(tmp_path / "empty")


def test_truncation(stored: Path) -> None:
    raw = stored.read_bytes()
    for length in {*range(0, len(raw), 37), len(raw) - 1}:
        stored.write_bytes(raw[:length])
        with pytest.raises(InputError):
            load_index_sets(stored)


def test_flipped_bytes_are_refused_or_change_nothing(sets: dict[str, IndexSet], stored: Path) -> None:
    raw, rng = stored.read_bytes(), random.Random(0)
    positions = [*range(0, len(raw), 3), *(rng.randrange(len(raw)) for _ in range(500))]
    refused = 0
    for position in positions:
        damaged = bytearray(raw)
        damaged[position] ^= 1 << rng.randrange(8) if rng.random() < 0.7 else rng.randrange(1, 256)
        stored.write_bytes(damaged)
        try:
            assert same(load_index_sets(stored), sets)
        except InputError:
            refused += 1
    assert refused > 0.95 * len(positions)  # white space of the header may become other white space

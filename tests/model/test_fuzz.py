"""Flipped bytes: a model or an ``InputError``, never another exception, never execution."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.model.conftest import make_net, rewrite_zip
from tests.model.test_onnx_backend import make_model
from trtkp.errors import InputError
from trtkp.model import load_model

FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
FLIPS = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4)


def flipped(data: bytes, flips: list[tuple[float, int]]) -> bytes:
    changed = bytearray(data)
    for place, bits in flips:
        changed[int(place * len(changed))] ^= bits
    return bytes(changed)


def attempt(path: Path, **options: object) -> None:
    try:
        load_model(path, **options)  # type: ignore[arg-type]
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017 - most mutations are harmless, so none need raise


@pytest.fixture(scope="module")
def files(program: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("fuzz")
    torch.save(make_net().state_dict(), folder / "zip")
    torch.save(make_net().state_dict(), folder / "old", _use_new_zipfile_serialization=False)
    return {
        "program": program.read_bytes(),
        "zip": (folder / "zip").read_bytes(),
        "old": (folder / "old").read_bytes(),
        "onnx": make_model().SerializeToString(),
    }


@FUZZ
@given(kind=st.sampled_from(["program", "zip", "old", "onnx"]), flips=FLIPS)
def test_flipped_files(files: dict[str, bytes], tmp_path: Path, kind: str, flips: list[tuple[float, int]]) -> None:
    path = tmp_path / "file"
    path.write_bytes(flipped(files[kind], flips))
    attempt(path)


@FUZZ
@given(flips=FLIPS, member=st.sampled_from(["models/model.json", "data/weights/model_weights_config.json"]))
def test_flipped_json(program: Path, tmp_path: Path, flips: list[tuple[float, int]], member: str) -> None:
    """The checksum is right, the content is not."""
    path = rewrite_zip(program, tmp_path / "file.pt2", {member: lambda data: flipped(data, flips)})
    attempt(path)


@FUZZ
@given(share=st.floats(0, 1), kind=st.sampled_from(["program", "zip", "old", "onnx"]))
def test_cut_files(files: dict[str, bytes], tmp_path: Path, share: float, kind: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(files[kind][: int(share * len(files[kind]))])
    attempt(path)


def test_json_values_exchanged(program: Path, tmp_path: Path) -> None:
    """Each kind of value in turn for a number of places of the program's JSON."""
    with zipfile.ZipFile(program) as archive:
        name = next(name for name in archive.namelist() if name.endswith("models/model.json"))
        text = archive.read(name)
    places = [place for place in range(0, len(text), max(1, len(text) // 40)) if text[place : place + 1].isalnum()]
    for place in places:
        for value in (b"null", b"-1", b'"x"', b"[]", b"{}"):
            changed = text[:place] + value + text[place + 1 :]
            attempt(rewrite_zip(program, tmp_path / "file.pt2", {"models/model.json": changed}))

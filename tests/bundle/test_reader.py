"""Opening bundles: nothing is read before its hash was checked, and every damage is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trtkp
from trtkp.bundle.manifest import hash_line
from trtkp.cli import main
from trtkp.errors import InputError, IntegrityError

FILES = ("engine.onnx", "index_sets.safetensors", "model.onnx", "manifest.json", "manifest.sha256")
Manifest = dict[str, Any]


def rewrite(bundle: Path, change: Callable[[Manifest], None]) -> None:
    """Change the manifest and make its hash right again, as somebody who can compute SHA-256 would."""
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    change(manifest)
    text = json.dumps(manifest).encode()
    (bundle / "manifest.json").write_bytes(text)
    (bundle / "manifest.sha256").write_bytes(hash_line(text))


def assert_refused(bundle: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every way of opening the bundle fails with status 2 and one line that names the file."""
    with pytest.raises(IntegrityError) as caught:
        trtkp.load(bundle)
    assert caught.value.file == str(bundle / name)
    for command in ("inspect", "verify", "bench"):
        assert main([command, str(bundle)]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert str(bundle / name) in err


def test_what_was_built_is_what_is_loaded(built: Path) -> None:
    assert sorted(path.name for path in built.iterdir()) == sorted(FILES)
    bundle = trtkp.load(built)
    assert set(bundle.manifest.files) == set(FILES[:3])
    for name, record in bundle.manifest.files.items():
        content = (built / name).read_bytes()
        assert (record.bytes, record.sha256) == (len(content), sha256(content).hexdigest())
    assert set(bundle.index_sets) == {"w1", "w2"}
    assert bundle.file("model.onnx") == built / "model.onnx"
    with pytest.raises(InputError, match=r"holds no model\.engine"):
        bundle.file("model.engine")


def test_hash_file_is_what_sha256sum_checks(built: Path) -> None:
    digest, name = (built / "manifest.sha256").read_text().split()
    assert name == "manifest.json"
    assert digest == sha256((built / "manifest.json").read_bytes()).hexdigest()


def test_run_opens_once_and_close_gives_it_back(built: Path) -> None:
    image = np.ones((2, 3, 8, 8), np.float32)
    with trtkp.load(built) as bundle:
        first = bundle.run({"image": image})["y"]
        runner = bundle._runner
        assert first.shape == (2, 5)
        np.testing.assert_array_equal(bundle.run({"image": image})["y"], first)
        assert bundle._runner is runner
        with pytest.raises(InputError, match="expected image"):
            bundle.run({"image": image[:, :2]})
    assert bundle._runner is None


@pytest.mark.parametrize("where", [0.0, 0.31, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit(bundle: Path, name: str, where: float, capsys: pytest.CaptureFixture[str]) -> None:
    file = bundle / name
    content = bytearray(file.read_bytes())
    position = round(where * (len(content) - 1))
    content[position] ^= 1 << (position % 7)
    file.write_bytes(content)
    # a hash that is well formed but wrong cannot tell which of the two files was changed: both are named
    well_formed = name == "manifest.sha256" and chr(content[position]) in "0123456789abcdef" and position < 64
    assert_refused(bundle, "manifest.json" if well_formed else name, capsys)


@pytest.mark.parametrize("left", [0, 1, 0.5, -1])
@pytest.mark.parametrize("name", FILES)
def test_cut(bundle: Path, name: str, left: float, capsys: pytest.CaptureFixture[str]) -> None:
    content = (bundle / name).read_bytes()
    (bundle / name).write_bytes(content[: round(left * len(content)) if left == 0.5 else int(left)])
    assert_refused(bundle, name, capsys)


@pytest.mark.parametrize("name", FILES)
def test_longer(bundle: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with (bundle / name).open("ab") as file:
        file.write(b"\n")
    assert_refused(bundle, name, capsys)


@pytest.mark.parametrize("name", FILES)
def test_missing(bundle: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (bundle / name).unlink()
    assert_refused(bundle, name, capsys)


@pytest.mark.parametrize("name", FILES)
def test_link_out_of_the_bundle(bundle: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    outside = bundle.with_name("outside")
    (bundle / name).rename(outside)
    (bundle / name).symlink_to(outside)
    assert_refused(bundle, name, capsys)


def test_folder_in_place_of_a_file(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (bundle / "engine.onnx").unlink()
    (bundle / "engine.onnx").mkdir()
    assert_refused(bundle, "engine.onnx", capsys)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(surprise=1), "surprise: Extra inputs"),
        (lambda m: m["layers"][0].update(surprise=1), r"layers\.0\.surprise: Extra inputs"),
        (lambda m: m.update(version=2), r"version is 2, this trtkp reads trtkp\.bundle version 1"),
        (lambda m: m.update(format="other"), "format is other"),
        (lambda m: m.pop("method"), "method: Field required"),
        (lambda m: m.update(backend="tpu"), "backend: 'tpu' is none of tensorrt"),
        (lambda m: m["files"]["model.onnx"].update(sha256="ABC"), r"files\.model\.onnx\.sha256: "),
        (lambda m: m["files"]["model.onnx"].update(bytes="many"), r"files\.model\.onnx\.bytes: "),
    ],
)
def test_a_manifest_that_breaks_the_schema_is_refused(
    bundle: Path, change: Callable[[Manifest], None], words: str
) -> None:
    rewrite(bundle, change)
    with pytest.raises(InputError, match=words) as caught:
        trtkp.load(bundle)
    assert caught.value.file == str(bundle / "manifest.json")


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/b", ".", "..", "", "a\\b", "nul\0", "./model.onnx", "model.onnx/"]
)
def test_names_that_leave_the_folder(bundle: Path, name: str) -> None:
    (bundle.parent / "secret").write_bytes(b"x")
    record = {"sha256": sha256(b"x").hexdigest(), "bytes": 1}
    rewrite(bundle, lambda manifest: manifest["files"].update({name: record}))
    with pytest.raises(InputError, match="is not the name of a file in the bundle's own folder"):
        trtkp.load(bundle)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_manifest_that_is_no_json_object(bundle: Path, text: bytes) -> None:
    (bundle / "manifest.json").write_bytes(text)
    (bundle / "manifest.sha256").write_bytes(hash_line(text))
    with pytest.raises(InputError) as caught:
        trtkp.load(bundle)
    assert str(caught.value).startswith(f"{bundle / 'manifest.json'}: I")  # "Invalid ...", "Input ..."


def test_where_no_bundle_is(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such bundle"):
        trtkp.load(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"is not a bundle: it holds no manifest\.json"):
        trtkp.load(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is not a bundle"):
        trtkp.load(tmp_path / "file")


def test_a_link_to_a_bundle_is_one(built: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(built)
    assert trtkp.load(tmp_path / "link").manifest.method == "kep"

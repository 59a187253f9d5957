"""Paths in a bundle: relative, and found again."""

from __future__ import annotations

import json
from pathlib import Path

import trtkp
from tests.pipeline.whole import assert_verified, build


def test_source_is_found_through_a_linked_folder(classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "deep")
    source = tmp_path / "net.onnx"
    source.write_bytes(classifier.read_bytes())
    bundle = build(source, tmp_path / "link" / "b")
    assert bundle.manifest.source.file == "../../../net.onnx"
    assert_verified(trtkp.load(tmp_path / "link" / "b"))


def test_manifest_holds_no_absolute_path(digits: Path, tmp_path: Path) -> None:
    bundle = build(digits, tmp_path / "b")
    text = (bundle.path / "manifest.json").read_text()
    assert str(tmp_path.parent) not in text
    assert str(Path.home()) not in json.loads(text)["source"]["file"]
    for name in ("model.onnx", "engine.onnx"):
        assert str(tmp_path.parent).encode() not in bundle.file(name).read_bytes()

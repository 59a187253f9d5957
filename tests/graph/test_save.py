"""Graphs as files and for sessions, small ones and ones past the limit of one file."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from trtkp.graph import save
from trtkp.graph.save import is_large, save_graph, session_source

X = np.random.default_rng(0).standard_normal((2, 4, 8, 8)).astype(np.float32)


@pytest.fixture
def model(new_graph: Any) -> ir.Model:
    """A convolution of 8 filters, 1152 bytes, with 32 bytes of biases."""
    graph = new_graph()
    rng = np.random.default_rng(1)
    weight = graph.constant("w", rng.standard_normal((8, 4, 3, 3)).astype(np.float32))
    bias = graph.constant("b", rng.standard_normal(8).astype(np.float32))
    made: ir.Model = graph.model(graph.op("Conv", graph.input("x", ("n", 4, 8, 8)), weight, bias, output="y"))
    return made


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(save, "LARGEST_FILE", 1000)
    monkeypatch.setattr(save, "LARGEST_SESSION", 1000)


def outputs(source: bytes | str) -> Any:
    return onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"]).run(None, {"x": X})[0]


def test_the_limit_is_of_the_weights(model: ir.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    assert save.LARGEST_FILE == 2**30
    for limit, large in ((1184, False), (1183, True)):
        monkeypatch.setattr(save, "LARGEST_FILE", limit)
        assert is_large(model) == large


def test_one_file(model: ir.Model, tmp_path: Path) -> None:
    save_graph(model, tmp_path / "net.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    assert (tmp_path / "net.onnx").read_bytes() == ir.to_proto(model).SerializeToString()


def test_weights_in_a_file_of_their_own(model: ir.Model, tmp_path: Path, small_limit: None) -> None:
    before = ir.to_proto(model).SerializeToString()
    save_graph(model, tmp_path / "net.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx", "net.onnx.data"]
    assert (tmp_path / "net.onnx.data").stat().st_size == 1152  # the biases are too few to go
    assert ir.to_proto(model).SerializeToString() == before
    onnx.checker.check_model(str(tmp_path / "net.onnx"))
    np.testing.assert_array_equal(outputs(str(tmp_path / "net.onnx")), outputs(before))


@pytest.mark.parametrize("limit", [1000, 1 << 30])
def test_what_came_from_two_files_does_not_need_them(
    model: ir.Model, tmp_path: Path, small_limit: None, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    (tmp_path / "old").mkdir()
    save_graph(model, tmp_path / "old" / "net.onnx")
    loaded = ir.load(tmp_path / "old" / "net.onnx")
    monkeypatch.setattr(save, "LARGEST_FILE", limit)
    with session_source(loaded) as source:
        np.testing.assert_array_equal(outputs(source), outputs(ir.to_proto(model).SerializeToString()))
    save_graph(loaded, tmp_path / "new.onnx")
    for path in (tmp_path / "old").iterdir():
        path.unlink()
    assert (tmp_path / "new.onnx.data").exists() == (limit == 1000)
    expected = outputs(ir.to_proto(model).SerializeToString())
    np.testing.assert_array_equal(outputs(str(tmp_path / "new.onnx")), expected)


@pytest.mark.parametrize("as_proto", [False, True])
def test_a_session_of_a_large_model(
    model: ir.Model, tmp_path: Path, small_limit: None, monkeypatch: pytest.MonkeyPatch, as_proto: bool
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    expected = outputs(ir.to_proto(model).SerializeToString())
    with session_source(ir.to_proto(model) if as_proto else model) as source:
        assert isinstance(source, str)
        assert Path(f"{source}.data").is_file()
        session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    assert not list(tmp_path.iterdir())
    np.testing.assert_array_equal(session.run(None, {"x": X})[0], expected)


def test_nothing_else_writes_models() -> None:
    """A model serialised anywhere else would fail past 2 GiB, which no other test is large enough to see."""
    root = Path(__file__).parents[2]
    words = re.compile(r"\b(ir\.save|onnx\.save|save_model|serialize_model|SerializeToString)\(")
    folders = ("trtkp", "prune", "calib", "benchmarks", "examples")
    files = [path for folder in folders for path in (root / folder).rglob("*.py")]
    found = {str(path.relative_to(root)) for path in files if words.search(path.read_text(encoding="utf-8"))}
    # what the server sends are messages of its protocol, no models
    assert {name for name in found if not name.startswith("trtkp/serving/")} == {"trtkp/graph/save.py"}

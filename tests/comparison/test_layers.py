"""Time per layer: attribution on a made-up profile, and on what ONNX Runtime really runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import trtkp
from trtkp.comparison import Comparison
from trtkp.comparison.layers import BETWEEN, CONVOLUTION, MATRIX, MOVE, OTHER, group_of, layer_times
from trtkp.comparison.result import LayerTimes
from trtkp.engine import NotRunnableError, get_backend
from trtkp.engine.base import EngineProfile, NodeTime


def times_of(comparison: Comparison, label: str) -> LayerTimes:
    found = next(entry.layers for entry in comparison.entries if entry.label == label)
    assert found is not None
    return found


def test_groups() -> None:
    groups = {
        CONVOLUTION: ("Conv", "FusedConv", "QLinearConv", "ConvTranspose", "ConvInteger"),
        MATRIX: ("Gemm", "QGemm", "MatMul", "FusedMatMul"),
        MOVE: ("ReorderInput", "Gather", "QuantizeLinear", "Concat"),
        OTHER: ("Relu", "MaxPool", "Add"),
    }
    assert {op: group_of(op) for ops in groups.values() for op in ops} == {
        op: group for group, ops in groups.items() for op in ops
    }


def test_moves_belong_to_the_layer_that_they_serve() -> None:
    nodes = (
        NodeTime("Reorder_token_1", "ReorderInput", ("x",), ("t0",), 1),
        NodeTime("r1_nchwc", "Conv", ("t0",), ("t1",), 10),  # w1, known by its output r1
        NodeTime("ReorderOutput", "ReorderOutput", ("t1",), ("r1",), 2),
        NodeTime("Slice", "Slice", ("r1",), ("t2",), 3),
        NodeTime("Cast", "Cast", ("t2",), ("t3",), 4),
        NodeTime("c2_token_7", "QLinearConv", ("t3",), ("t4",), 20),  # w2, known by its name
        NodeTime("pool", "MaxPool", ("t4",), ("t5",), 5),
        NodeTime("end", "Transpose", ("t5",), ("y",), 6),  # nobody's
    )
    times = layer_times(EngineProfile(nodes, run_ms=60, runs=1), {"r1": "w1", "c2": "w2"}, batch=4)
    first, second = times.layers
    assert (first.name, first.compute_ms, first.neighbours_ms) == ("w1", 10, 3)
    assert first.neighbours == {"ReorderInput": 1, "ReorderOutput": 1}
    assert (second.name, second.compute_ms, second.neighbours_ms) == ("w2", 20, 7)
    assert second.neighbours == {"Slice": 1, "Cast": 1}
    assert times.groups == {CONVOLUTION: 30, MATRIX: 0, MOVE: 16, OTHER: 5, BETWEEN: 9}
    assert times.moves == 5
    assert next(iter(times.operators.items())) == ("QLinearConv", 20)


@pytest.mark.parametrize("label", ["dense", "kep", "vskp", "int8", "net.onnx"])
def test_every_layer_is_found_in_what_is_run(comparison: Comparison, label: str) -> None:
    times = times_of(comparison, label)
    assert [layer.name for layer in times.layers] == ["w0", "w1", "w2", "fc"]
    assert all(layer.compute_ms > 0 for layer in times.layers)
    # every convolution and product is some layer's
    assert sum(layer.compute_ms for layer in times.layers) == pytest.approx(
        times.groups[CONVOLUTION] + times.groups[MATRIX]
    )
    assert 0.3 * times.run_ms < sum(times.groups.values()) < 2 * times.run_ms
    assert times.batch == 8


def test_what_a_form_costs_around_its_products_is_its_neighbour(comparison: Comparison) -> None:
    slices = next(layer for layer in times_of(comparison, "kep").layers if layer.name == "w1").neighbours
    assert slices["Slice"] == 2
    gathers = next(layer for layer in times_of(comparison, "vskp").layers if layer.name == "w2").neighbours
    assert "Gather" not in gathers  # the convolution before it writes its filters in the listed order
    quantisers = next(layer for layer in times_of(comparison, "int8").layers if layer.name == "w0").neighbours
    assert quantisers["QuantizeLinear"] == 1
    assert times_of(comparison, "kep").moves > times_of(comparison, "dense").moves


def test_profile_of_a_backend(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    bundle = trtkp.load(folder / "dense")
    feeds = {"image": np.zeros((4, 3, 8, 8), np.float32)}
    found = get_backend("onnxruntime").profile(bundle.file("engine.onnx"), feeds, threads=1, runs=3)
    assert found.runs == 3
    assert found.run_ms > 0
    assert all(node.ms >= 0 and node.inputs and node.outputs for node in found.nodes)
    assert list(tmp_path.iterdir()) == []  # its files are gone
    with pytest.raises(NotRunnableError, match="TensorRT cannot open the engine here"):
        get_backend("tensorrt").profile(bundle.file("engine.onnx"), feeds)

"""What is taken out of the engine's graph: dead filters and channels, Gathers that cancel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from safetensors.numpy import load_file

import trtkp
from tests.pipeline.whole import build, nodes_of
from trtkp.cli.inspect import show as show_inspected
from trtkp.pipeline.options import BuildOptions


def without_filters(source: Path, target: Path) -> Path:
    """Three of w0's filters are zero, and w2 does not read two more of w1's."""
    model = onnx.load(source)
    for stored in model.graph.initializer:
        array = numpy_helper.to_array(stored).copy()
        if stored.name == "w0":
            array[[2, 5, 11]] = 0
        elif stored.name == "w2":
            array[:, [0, 31]] = 0
        stored.CopyFrom(numpy_helper.from_array(array, stored.name))
    onnx.save_model(model, target)
    return target


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_dead_parts_leave_the_engine_alone(
    classifier: Path, tmp_path: Path, precision: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = without_filters(classifier, tmp_path / "net.onnx")
    bundle = build(path, tmp_path / "b", "from-zeros", lowering="dense", precision=precision)
    weights = {w.name: tuple(w.dims) for w in onnx.load(bundle.file("engine.onnx")).graph.initializer}
    convolutions = [weights[node.input[1]] for node in nodes_of(bundle, "engine.onnx") if node.op_type == "Conv"]
    assert convolutions == [(13, 3, 3, 3), (30, 13, 3, 3), (32, 30, 3, 3)]
    packed = [list(a.ints) for n in nodes_of(bundle, "model.onnx") for a in n.attribute if a.name == "weight_shape"]
    assert packed == [[16, 3, 3, 3], [32, 32, 3, 3]]  # what the source has: index sets are for its weights
    assert set(load_file(bundle.file("index_sets.safetensors"))) >= {"w0.filters", "w2.filters"}
    dead = bundle.manifest.plan.dead
    assert dead is not None
    assert (dead.filters, dead.channels) == (5, 5)
    removed = {"w0": 3 * 27, "w1": (32 * 16 - 30 * 13) * 9, "w2": 2 * 32 * 9}
    assert {part.name: part.params for part in dead.layers} == removed
    assert dead.macs == 64 * sum(removed.values())
    assert trtkp.verify(bundle.path).ok
    show_inspected(bundle, json=False)
    assert f"removed 5 filters and 5 channels that were read: {dead.params:,} params" in capsys.readouterr().out


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_gathers_of_a_plan_are_folded(classifier: Path, tmp_path: Path, precision: str) -> None:
    """Two lists of channels a layer, filters of both mixed: the plan's Gathers at the outputs go."""
    model = onnx.load(classifier)
    for stored in model.graph.initializer:
        array = numpy_helper.to_array(stored).copy()
        if stored.name in ("w1", "w2"):
            half = array.shape[1] // 2
            array[::2, :half], array[1::2, half:] = 0, 0
        stored.CopyFrom(numpy_helper.from_array(array, stored.name))
    onnx.save_model(model, tmp_path / "net.onnx")
    samples = np.random.default_rng(0).standard_normal((8, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "samples.npz", x=samples, y=np.arange(8) % 5)
    bundle = trtkp.build(
        tmp_path / "net.onnx",
        tmp_path / "b",
        method="from-zeros",
        options=BuildOptions(lowering="gather", precision=precision),
        data=tmp_path / "samples.npz" if precision == "int8" else None,
    )
    assert [layer.lowering for layer in bundle.manifest.layers] == [None, "gather", "gather"]
    gathers = bundle.manifest.plan.gathers
    assert gathers is not None
    assert gathers.before == 4
    assert gathers.after == 1  # between the two grouped layers, whose groups are not the same channels
    kinds = [node.op_type for node in nodes_of(bundle, "engine.onnx")]
    assert kinds.count("Gather") == 1
    assert trtkp.verify(bundle.path).ok

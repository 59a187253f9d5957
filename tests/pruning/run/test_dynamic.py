"""DPPNet from a model file to an engine: its three stages, what is written, built and trained further."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from examples.nets import export
from trtkp.bundle.pruned import load_pruned
from trtkp.model import load_model
from trtkp.pipeline.build import build
from trtkp.pipeline.options import BuildOptions
from trtkp.pruning.methods.registry import make_method
from trtkp.pruning.run import PruneOptions, prune
from trtkp.pruning.train.recipe import Recipe, Training, read_recipe
from trtkp.verification.bundle import verify

from .conftest import rows_of, small_net

_THREE_STAGES = """
method: dppnet
settings: {alpha: 0.035}
prepare: {epochs: 2, batch: 30, lr: 0.1}
regularise: {epochs: 12, batch: 30, lr: 0.03, momentum: 0.0, schedule: constant}
finetune: {epochs: 4, batch: 30, lr: 0.1}
"""


@pytest.fixture(scope="module")
def dynamic(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``trtkp prune`` makes of the net with dynamic patterns: the directory ``dynamic``."""
    folder = shutil.copytree(source, tmp_path_factory.mktemp("dynamic") / "work")
    (folder / "three.yaml").write_text(_THREE_STAGES)
    net = small_net()
    with torch.no_grad():
        for i in (3, 7):  # positions that differ: all of a plane would stay or go at once
            net[i].weight.mul_(torch.tensor([[0.2, 1, 0.2], [1, 2, 1], [0.2, 1, 0.2]]))
    torch.export.save(export(net, (1, 8, 8)), folder / "net.pt2")
    chosen = read_recipe(folder / "three.yaml")
    prune(folder / "net.pt2", folder / "dynamic", method=make_method("dppnet", **chosen.settings),
          options=PruneOptions(training=chosen), data=folder / "data.npz")  # fmt: skip
    return folder


def test_dynamic_patterns_are_learnt_in_three_stages(dynamic: Path) -> None:
    pruned = load_pruned(dynamic / "dynamic")
    told = pruned.manifest
    assert told.accuracy is not None
    assert told.accuracy["pruned"] > 0.8 > told.accuracy["dense"]
    stages = [row["stage"] for row in rows_of(str(dynamic / "dynamic" / "log.csv"))]
    assert stages == ["prepare"] * 2 + ["regularise"] * 12 + ["finetune"] * 4
    weights = load_model(pruned.model).parameters()
    taps = {name: index.mask()[0, 0].sum() for name, index in pruned.index_sets.items()}
    assert set(taps) == {"3.weight", "7.weight"}
    assert any(count < 9 for count in taps.values())
    for layer in told.layers:
        assert weights[layer.name].shape == (4, 8, 8 * taps[layer.name])
        assert layer.retained_params == weights[layer.name].size
        assert layer.paper_index_bytes == 5  # 4 patterns of 9 bits
    attention = 2 * (3 * 8 + 32 * 3 + 32)
    dense = told.totals.dense_params - 2 * 576
    assert told.totals.retained_params == dense + sum(layer.retained_params for layer in told.layers) + attention + 16
    removed = told.report["removed"]
    kept = sum(576 * 64 * count / 9 for count in taps.values())
    assert removed["layers"] == pytest.approx(1 - kept / (2 * 576 * 64))
    assert removed["net_with_overhead"] < removed["net"] < removed["layers"]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_dynamic_patterns_are_built_and_exact_for_any_batch(dynamic: Path, tmp_path: Path, precision: str) -> None:
    bundle = build(
        dynamic / "dynamic", tmp_path / "b", options=BuildOptions(backend="onnxruntime", precision=precision)
    )
    model, engine = (onnx.load(bundle.path / name) for name in ("model.onnx", "engine.onnx"))
    assert [node.op_type for node in model.graph.node].count("DynamicPatternConvRelu") == 2  # with their BatchNorm
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    assert {node.domain for node in engine.graph.node} == {""}
    source = load_model(load_pruned(dynamic / "dynamic").model)
    tolerance = 1e-5 if precision == "fp32" else 5e-3
    for file in ("model.onnx", "engine.onnx"):
        session = onnxruntime.InferenceSession(bundle.path / file, providers=["CPUExecutionProvider"])
        for batch in (1, 5):
            x = np.random.default_rng(batch).normal(size=(batch, 1, 8, 8)).astype(np.float32)
            (want,) = source.run({source.inputs[0].name: x}).values()
            (got,) = session.run(None, {session.get_inputs()[0].name: x})
            assert np.linalg.norm(got - want) <= tolerance * np.linalg.norm(want)
    assert verify(bundle.path).ok
    assert set(bundle.manifest.left_out) == {"3.weight", "7.weight"}
    assert "positions (DynamicPatternConv)" in bundle.manifest.left_out["3.weight"]
    assert bundle.manifest.totals.dense_macs == load_pruned(dynamic / "dynamic").manifest.totals.retained_macs


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_dynamic_patterns_can_be_trained_further(dynamic: Path, tmp_path: Path, precision: str) -> None:
    """The positions that are read stay; the layer that is pruned now has its zeros."""
    training = Training(finetune=Recipe(epochs=1, batch=30, lr=0.1, precision=precision))
    before = load_pruned(dynamic / "dynamic")
    options = PruneOptions(include=["0"], training=training)
    made = prune(before.model, tmp_path / "p", method="kep", n=4, options=options, data=dynamic / "data.npz")
    accuracy = made.manifest.accuracy
    assert accuracy is not None
    assert accuracy["dense"] > 0.8
    weights, trained = (load_model(one.model).parameters() for one in (before, made))
    assert np.array_equal(trained["0.weight"] != 0, made.index_sets["0.weight"].mask())
    for name in ("3.weight", "3.attention.attend.weight", "7.weight"):
        assert trained[name].shape == weights[name].shape
        assert not np.array_equal(trained[name], weights[name])


def test_tensorrt_rtx_builds_dynamic_patterns(dynamic: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    options = BuildOptions(backend="tensorrt-rtx", targets=["sm89"], precision="fp16")
    bundle = build(dynamic / "dynamic", tmp_path / "b", options=options)
    assert (bundle.path / "model.engine").stat().st_size > 0
    ((_, shapes),) = bundle.manifest.profile.items()
    assert shapes["max"][0] > shapes["min"][0]

"""Models past the limit of one ONNX file: every writer splits them, and nothing else changes.

The limit, 1 GiB, is turned down to nothing. So every graph that the package writes or runs is a large one.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import tritonclient.http

import trtkp
from tests.serving.servers import batch_input, running
from trtkp.budget.choices import Level
from trtkp.budget.net import Net
from trtkp.bundle.pruned import load_pruned
from trtkp.calib.placement import place
from trtkp.calib.qdq import insert
from trtkp.calib.ranges import METHODS, measure_ranges
from trtkp.cli import main
from trtkp.data.labelled import LabelledData
from trtkp.engine import BuildRequest, get_backend
from trtkp.engine.feeds import random_feeds
from trtkp.engine.onnxruntime import OrtRunner
from trtkp.errors import IntegrityError
from trtkp.graph import save
from trtkp.graph.passes.precision import to_float16
from trtkp.kernels.prediction import known_gpu
from trtkp.model import load_model
from trtkp.plan.target import EngineTarget
from trtkp.pruning.run import prune
from trtkp.shapes import ShapeRange

FEED = {"image": np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32)}
BUNDLES = ("fp32", "fp16", "int8", "from_bundle")


def options(**given: Any) -> trtkp.BuildOptions:
    return trtkp.BuildOptions(backend="onnxruntime", threads=1, lowering="gather", **given)


def labelled() -> LabelledData:
    rng = np.random.default_rng(1)
    return LabelledData(rng.standard_normal((12, 3, 8, 8)).astype(np.float32), rng.integers(0, 5, 12))


@pytest.fixture
def split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model is a large one."""
    monkeypatch.setattr(save, "LARGEST_FILE", 0)


def write_all(classifier: Path, folder: Path) -> Path:
    """A bundle of every kind and a pruned model."""
    build = {"method": "kep", "n": 4, "share": "per-layer", "data": labelled()}
    trtkp.build(classifier, folder / "fp32", options=options(), **build)
    trtkp.build(classifier, folder / "fp16", options=options(precision="fp16"), **build)
    trtkp.build(classifier, folder / "int8", options=options(precision="int8"), **build)
    trtkp.calibrate(folder / "fp32", folder / "from_bundle", data=labelled(), options=options())
    prune(classifier, folder / "pruned", method="kep", n=4)
    return folder


@pytest.fixture(scope="module")
def whole(classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Written as ever."""
    return write_all(classifier, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def parted(classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Written as large models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(save, "LARGEST_FILE", 0)
        return write_all(classifier, tmp_path_factory.mktemp("parted"))


def graph_of(path: Path) -> bytes:
    """A graph with its weights, wherever they lie."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        tensor.ClearField("data_location")
    return model.SerializeToString(deterministic=True)


@pytest.mark.parametrize("name", BUNDLES)
def test_bundles_hold_the_same(whole: Path, parted: Path, name: str) -> None:
    one, two = trtkp.load(whole / name), trtkp.load(parted / name)
    graphs = ("model.onnx", "engine.onnx")
    assert set(two.manifest.files) == set(one.manifest.files) | {f"{graph}.data" for graph in graphs}
    for graph in graphs:
        assert graph_of(two.file(graph)) == graph_of(one.file(graph))
        assert two.manifest.files[graph].bytes < one.manifest.files[graph].bytes
    mine, theirs = (bundle.manifest.model_dump(exclude={"files", "created", "seconds"}) for bundle in (one, two))
    for times in ("floating", "quantised"):
        for manifest in (mine, theirs):
            if manifest["quantisation"] is not None:
                assert manifest["quantisation"].pop(times)["median_ms"] > 0
    assert theirs == mine
    assert list(two.manifest.seconds) == list(one.manifest.seconds)
    assert two.manifest.accuracy is not None


@pytest.mark.parametrize("name", BUNDLES)
def test_bundles_are_read(whole: Path, parted: Path, name: str, split: None) -> None:
    with trtkp.load(whole / name) as one, trtkp.load(parted / name) as two:
        np.testing.assert_array_equal(two.run(FEED)["y"], one.run(FEED)["y"])
    report = trtkp.verify(parted / name)
    assert {check.status for check in report.checks} == {"verified"}
    assert trtkp.bench([parted / name], runs=2, warmup=1)[0].precision == trtkp.load(parted / name).manifest.precision


def test_bundles_are_read_where_the_limit_is_another(parted: Path, tmp_path: Path) -> None:
    """The graphs in memory fit into one message, but their weights still lie in the second file."""
    assert {check.status for check in trtkp.verify(parted / "fp32").checks} == {"verified"}
    again = trtkp.calibrate(parted / "fp32", tmp_path / "int8", data=labelled(), options=options())
    assert "engine.onnx.data" not in again.manifest.files
    assert graph_of(again.file("engine.onnx")) == graph_of(parted / "from_bundle" / "engine.onnx")


@pytest.mark.parametrize("name", ["fp32", "pruned"])
def test_hashes_cover_the_second_file(parted: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(parted / name, tmp_path / name)
    data = folder / "model.onnx.data"
    content = bytearray(data.read_bytes())
    content[-1] ^= 1
    data.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"model\.onnx\.data.*was changed"):
        load_pruned(folder) if name == "pruned" else trtkp.load(folder)


def test_a_bundle_is_served(whole: Path, parted: Path, tmp_path: Path) -> None:
    """By a server's worker, and from a repository for Triton."""
    with trtkp.load(whole / "fp32") as bundle:
        expected = bundle.run(FEED)["y"]
    with running(tmp_path, parted / "fp32", "--threads", "1") as server:
        client = server.http_client()
        answer = client.infer("fp32", batch_input(tritonclient.http, FEED["image"])).as_numpy("y")
        client.close()
    np.testing.assert_array_equal(answer, expected)
    assert main(["export-triton", str(parted / "fp32"), "-o", str(tmp_path / "repository")]) == 0
    with OrtRunner(tmp_path / "repository" / "fp32" / "1" / "model.onnx", threads=1) as runner:
        np.testing.assert_array_equal(runner.run(FEED)["y"], expected)


def test_a_bundle_is_quantised_in_its_own_place(parted: Path, tmp_path: Path, split: None) -> None:
    folder = shutil.copytree(parted / "fp32", tmp_path / "bundle")
    made = trtkp.calibrate(folder, folder, data=labelled(), options=options())
    for graph in ("model.onnx", "engine.onnx"):
        assert graph_of(made.file(graph)) == graph_of(parted / "from_bundle" / graph)


def test_a_pruned_model(whole: Path, parted: Path, tmp_path: Path, split: None) -> None:
    one, two = load_pruned(whole / "pruned"), load_pruned(parted / "pruned")
    assert set(two.manifest.files) == set(one.manifest.files) | {"model.onnx.data"}
    assert graph_of(two.model) == graph_of(one.model)
    made = trtkp.build(parted / "pruned", tmp_path / "bundle", options=options())
    assert trtkp.verify(made).checks[0].status == "verified"


def test_the_source_model_runs(classifier: Path, split: None) -> None:
    model = load_model(classifier)
    weight = {"w0": np.zeros((16, 3, 3, 3), np.float32)}
    assert model.run(FEED)["y"].any()
    assert not model.run(FEED, weight)["y"].any()


def test_a_search_and_its_races(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    levels = {"w1": Level(0.5, 16), "w2": Level(0.5, 16)}
    found = []
    for limit in (1 << 30, 0):
        monkeypatch.setattr(save, "LARGEST_FILE", limit)
        net = Net(classifier, "vskp", {}, options(timing_cache=False), labelled(), 12)
        assert all(timing.median_ms > 0 for timing in net.race(levels))
        found.append((net.quality(levels), {name: net.macs(name, level) for name, level in levels.items()}))
    assert found[0] == found[1]


def test_layers_are_timed(classifier: Path, tmp_path: Path, split: None) -> None:
    chosen = trtkp.BuildOptions(backend="onnxruntime", threads=1, timing_cache=False, opt=["2x3x8x8"])
    made = trtkp.build(classifier, tmp_path / "bundle", method="kep", n=4, share="per-layer", options=chosen)
    assert made.manifest.plan.status == "measured"
    assert all(layer.measured for layer in made.manifest.layers if layer.kind != "dense")


def test_engines_that_a_plan_times(classifier: Path, tmp_path: Path, split: None) -> None:
    """They are built from files; ONNX Runtime's backend, which copies its graph, stands in for TensorRT's."""
    model = load_model(classifier).graph()
    backend = get_backend("onnxruntime")
    engine = EngineTarget(known_gpu("A100"), backend=backend)._built(model, {"image": (3, 3, 8, 8)}, tmp_path / "0")
    with backend.open(engine) as runner:
        found = runner.run(FEED)["y"]
    names = {"model.onnx", "model.onnx.data", "engine.onnx", "engine.onnx.data"}
    assert {path.name for path in (tmp_path / "0").iterdir()} == names
    np.testing.assert_allclose(found, load_model(classifier).run(FEED)["y"], rtol=1e-4, atol=1e-5)


def test_a_backend_puts_its_graph_in_place(parted: Path, tmp_path: Path, split: None) -> None:
    profile = {"image": ShapeRange((1, 3, 8, 8), (3, 3, 8, 8), (8, 3, 8, 8))}
    built = get_backend("onnxruntime").build(BuildRequest(parted / "fp32" / "engine.onnx", tmp_path, profile))
    assert [file.name for file in built.files] == ["engine.onnx", "engine.onnx.data"]
    assert graph_of(tmp_path / "engine.onnx") == graph_of(parted / "fp32" / "engine.onnx")


@pytest.mark.parametrize("method", METHODS)
def test_ranges(classifier: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    model = load_model(classifier).graph()
    tensors = place(model, "onnxruntime").tensors
    found = []
    for limit in (1 << 30, 0):
        monkeypatch.setattr(save, "LARGEST_FILE", limit)
        found.append(measure_ranges(model, list(tensors), [FEED["image"]], method=method))
    assert found[0] == found[1]


def test_pairs_in_half_precision(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph is lifted to a later opset, by a converter that takes one message."""
    model = load_model(classifier).graph()
    placement = place(model, "explicit")
    found = []
    for limit in (1 << 30, 0):
        monkeypatch.setattr(save, "LARGEST_FILE", limit)
        graph = insert(to_float16(model), placement, dict.fromkeys(placement.tensors, 4.0))
        assert [value.name for value in graph.graph.inputs] == ["image"]
        nodes = {f"node {n.name}": np.array([n.op_type, *(v.name for v in n.inputs if v)]) for n in graph.graph}
        weights = {name: value.const_value for name, value in graph.graph.initializers.items()}
        found.append(nodes | {name: tensor.numpy() for name, tensor in weights.items() if tensor is not None})
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        np.testing.assert_array_equal(value, found[1][name], err_msg=name)


def test_nothing_is_left_of_sessions(
    classifier: Path, tmp_path: Path, split: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model = load_model(classifier)
    feeds = random_feeds(model.inputs, {"image": (2, 3, 8, 8)}, seed=0)
    assert model.run(feeds)["y"].any()
    assert isinstance(model.graph(), ir.Model)
    assert not list(tmp_path.iterdir())

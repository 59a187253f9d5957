"""Whole bundles of the backend ``tensorrt``: built, checked, run, timed and compared.

The builder, the runtime and the GPU are the recording stand-ins of this folder; everything of ours is real: the plan,
the build worker, the plugin library (over emulated kernels), the checks, the runner.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import trtkp
from tests.cuda.recording_device import RecordingDevice
from tests.emulation.programs import build_library
from tests.engine.trt import recording_tensorrt
from tests.models import write_classifier
from trtkp.bundle import Bundle
from trtkp.cli.bench import show as show_bench
from trtkp.engine.onnxruntime import OrtRunner
from trtkp.engine.options import RunOptions, TrtOptions
from trtkp.errors import InputError, JobError
from trtkp.machine.gpu import Gpu, GpuReport
from trtkp.pipeline.options import BuildOptions
from trtkp.plan.target import EngineTarget

_L4 = Gpu(0, "NVIDIA L4", (8, 9), 24 << 30, 58, 48 << 20)
_REPORT = GpuReport((_L4,), "580.65", "13.0", "NVIDIA L4 (sm89)")
_MODULE = "tests.engine.trt.recording_tensorrt"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classifier(tmp_path_factory.mktemp("model") / "net.onnx", (3, 16, 32, 32))


@pytest.fixture(scope="module")
def library() -> Path:
    return build_library()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, library: Path) -> Iterator[None]:
    """One with TensorRT, the plugin library and an L4."""
    monkeypatch.setenv("TRTKP_LIBRARY", str(library))
    monkeypatch.setattr("trtkp.engine.trt.tensorrt._MODULE", _MODULE)
    monkeypatch.setattr("trtkp.engine.trt.tensorrt.importable", lambda name: name == _MODULE)
    for module in ("engine.trt.tensorrt", "plan.target", "pipeline.records"):
        monkeypatch.setattr(f"trtkp.{module}.find_gpus", lambda: _REPORT)
    monkeypatch.setattr("trtkp.engine.trt.runner.open_device", RecordingDevice)
    yield
    recording_tensorrt._registry.all_creators.clear()
    recording_tensorrt.FAULT = 0.0


def build(model: Path, target: Path, **options: Any) -> Bundle:
    chosen = BuildOptions(**{"backend": "tensorrt", "lowering": "plugin", "max": ("4x3x8x8",)} | options)
    return trtkp.build(model, target, method="vskp", ratio=0.6, allocation="uniform", filter_group=8, options=chosen)


@pytest.fixture
def bundle(machine: None, model: Path, tmp_path: Path) -> Bundle:
    return build(model, tmp_path / "bundle")


def images(batch: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(batch).standard_normal((batch, 3, 8, 8)).astype(np.float32)


def operators(bundle: Bundle) -> list[str]:
    return [node.op_type for node in onnx.load(bundle.file("engine.onnx")).graph.node if node.domain == "trtkp"]


def test_packed_layers_become_plugins(bundle: Bundle, library: Path) -> None:
    manifest = bundle.manifest
    packed = [layer for layer in manifest.layers if layer.lowering == "plugin"]
    assert len(packed) >= 2
    assert len(operators(bundle)) == len(packed)
    assert manifest.tensorrt is not None
    assert manifest.tensorrt.plugin_layers == len(packed)
    assert manifest.tensorrt.plugin_library == sha256(library.read_bytes()).hexdigest()
    assert manifest.tensorrt.gpu == "NVIDIA L4"
    assert manifest.libraries["tensorrt"] == recording_tensorrt.__version__
    assert manifest.plan.status == "forced"
    nodes = onnx.load(bundle.file("engine.onnx")).graph.node
    pins = [a.s.decode() for node in nodes for a in node.attribute if node.domain == "trtkp" and a.name == "tactic"]
    assert len(pins) == len(packed)
    assert all(pin.startswith("sm_89=") for pin in pins)


def test_lists_are_packed_for_the_kernels(bundle: Bundle) -> None:
    """Lists of whole blocks of 8, unlike those of ``model.onnx``."""

    def lengths(name: str) -> list[int]:
        tensors = onnx.load(bundle.file(name)).graph.initializer
        return [tensor.dims[1] for tensor in tensors if tensor.name.endswith(".channels")]

    assert all(length % 8 == 0 for length in lengths("engine.onnx"))
    assert any(length % 8 for length in lengths("model.onnx"))


def test_run_is_right_for_every_batch(bundle: Bundle) -> None:
    with OrtRunner(bundle.file("engine.onnx")) as reference, trtkp.load(bundle.path) as opened:
        for batch in (1, 4, 2):
            wanted = reference.run({"image": images(batch)})
            found = opened.run({"image": images(batch)})
            np.testing.assert_allclose(found["y"], wanted["y"], rtol=1e-5)
        with pytest.raises(InputError, match=r"got float32\[5, 3, 8, 8\]"):
            opened.run({"image": images(5)})


def test_options_of_the_runtime(bundle: Bundle) -> None:
    with bundle.open(options=RunOptions(contexts=2, graphs=True)) as runner:
        first = runner.run({"image": images(2)})["y"]
        np.testing.assert_array_equal(first, runner.run({"image": images(2)})["y"])


def test_verify_holds_the_engine_against_both(bundle: Bundle) -> None:
    report = trtkp.verify(bundle, require_engine=True)
    assert report.ok, [check.summary for check in report.checks]
    engine = [check for check in report.checks if check.artefact == "engine"]
    assert [(check.against, check.status) for check in engine] == [
        ("dense masked ONNX", "verified"), ("its graph", "verified"),
    ]  # fmt: skip
    recording_tensorrt.FAULT = 0.1
    report = trtkp.verify(bundle)
    assert [check.status for check in report.checks if check.artefact == "engine"] == ["failed", "failed"]


def test_engine_that_computes_something_else_is_not_published(
    machine: None, model: Path, bundle: Bundle, tmp_path: Path
) -> None:
    recording_tensorrt.FAULT = 0.1
    with pytest.raises(JobError, match=r"the engine computes something else than its graph: .*relative error"):
        build(model, bundle.path)
    with pytest.raises(JobError, match="--no-plugins"):
        build(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert trtkp.load(bundle.path).manifest == bundle.manifest


def test_without_plugins(machine: None, model: Path, tmp_path: Path) -> None:
    bundle = build(model, tmp_path / "bundle", plugins=False, lowering="gather")
    assert operators(bundle) == []
    assert bundle.manifest.tensorrt is not None
    assert (bundle.manifest.tensorrt.plugin_layers, bundle.manifest.tensorrt.plugin_library) == (0, None)
    with pytest.raises(InputError, match="--lowering plugin: only the backend tensorrt has it"):
        build(model, tmp_path / "other", plugins=False)
    with pytest.raises(InputError, match="--lowering plugin: only the backend tensorrt has it"):
        build(model, tmp_path / "other", backend="onnxruntime")


def test_parser_that_takes_bodies_fails_the_build(
    machine: None, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A silently slow engine is no engine: the stand-in's parser does as those before TensorRT 10.7 did."""
    module = tmp_path / "old_tensorrt.py"
    module.write_text(
        f"from {_MODULE} import *\n"
        f"from {_MODULE} import OnnxParser as New, _registry, __version__\n"
        "class OnnxParser(New):\n"
        "    def parse_from_file(self, path):\n"
        "        held, _registry.all_creators = _registry.all_creators, []\n"
        "        try: return super().parse_from_file(path)\n"
        "        finally: _registry.all_creators = held\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("trtkp.engine.trt.tensorrt._MODULE", "old_tensorrt")
    monkeypatch.setattr("trtkp.engine.trt.tensorrt.importable", lambda name: name == "old_tensorrt")
    with pytest.raises(
        JobError, match=r"the graph has \d operators of domain trtkp, but the network has 0 layers of its plugins"
    ):
        build(model, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_embedded_plugins_need_leave(machine: None, model: Path, tmp_path: Path) -> None:
    bundle = build(model, tmp_path / "bundle", tensorrt=TrtOptions(embed_plugins=True))
    assert bundle.manifest.tensorrt is not None
    assert bundle.manifest.tensorrt.embed_plugins
    with pytest.raises(JobError, match="setEngineHostCodeAllowed; the engine contains host code: set TRTKP_ALLOW"):
        bundle.run({"image": images(1)})
    with bundle.open(options=RunOptions(allow_host_code=True)) as runner:
        assert runner.run({"image": images(1)})["y"].shape == (1, 5)


def test_stripped_engines_take_their_weights_from_the_graph(machine: None, model: Path, tmp_path: Path) -> None:
    bundle = build(model, tmp_path / "bundle", tensorrt=TrtOptions(strip_weights=True))
    whole = build(model, tmp_path / "whole")
    x = {"image": images(2)}
    np.testing.assert_array_equal(bundle.run(x)["y"], whole.run(x)["y"])
    with pytest.raises(
        JobError, match=r"the engine cannot be refitted with the weights of .*absent.onnx: refitFromFile: no such file"
    ):
        whole.open(options=RunOptions(refit_from=tmp_path / "absent.onnx"))


def test_stripped_engine_takes_no_other_weights_unless_it_was_built_for_them(
    machine: None, model: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.onnx"
    stripped = build(model, tmp_path / "stripped", tensorrt=TrtOptions(strip_weights=True))
    net = onnx.load(stripped.file("engine.onnx"))
    net.doc_string = "other weights"
    onnx.save(net, other)
    with pytest.raises(InputError, match=r"takes no other weights than its own, .*other.onnx.*--strip-weights --refit"):
        stripped.open(options=RunOptions(refit_from=other))
    stripped.open(options=RunOptions(refit_from=stripped.file("engine.onnx"))).close()
    both = build(model, tmp_path / "both", tensorrt=TrtOptions(strip_weights=True, refit=True))
    both.open(options=RunOptions(refit_from=other)).close()


def test_sparse_kernels_where_a_layer_that_is_no_plugin_is_sparse(machine: None, model: Path, tmp_path: Path) -> None:
    def sparse(name: str, **options: Any) -> bool:
        chosen = BuildOptions(backend="tensorrt", max=("4x3x8x8",), timing_cache=False, **options)
        settings: dict[str, Any] = (
            {"ratio": 0.6, "filter_group": 8} if name == "plain" else {"ratio": 0.7, "nm": "2:4", "filter_group": 8}
        )
        record = trtkp.build(model, tmp_path / name, method="vskp", **settings, options=chosen).manifest.tensorrt
        assert record is not None
        return record.sparse

    assert not sparse("plain", lowering="gather")
    assert sparse("dense", lowering="dense")
    assert sparse("gathered", lowering="gather")


def test_host_code_by_the_environment(machine: None, model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    bundle = build(model, tmp_path / "bundle", tensorrt=TrtOptions(embed_plugins=True))
    monkeypatch.setenv("TRTKP_ALLOW_HOST_CODE", "1")
    assert bundle.run({"image": images(1)})["y"].shape == (1, 5)


def test_missing_plugin_library_is_named(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recording_tensorrt._registry.all_creators.clear()
    monkeypatch.setenv("TRTKP_LIBRARY", str(tmp_path / "absent.so"))
    with pytest.raises(JobError, match=r"could not find plugin KernelIndexConv .*; install the plugin library"):
        bundle.run({"image": images(1)})


@pytest.mark.slow
def test_measured_plan(machine: None, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lowerings of all layers are in one engine. The stand-in's layers take longer the later they stand in it."""
    built: list[str] = []
    build_one = EngineTarget._built

    def counted(target: EngineTarget, model: ir.Model, *given: Any) -> Path:
        built.append(str(model.graph.name))
        return build_one(target, model, *given)

    monkeypatch.setattr(EngineTarget, "_built", counted)
    monkeypatch.setattr("trtkp.plan.planner.WORTH_TIMING", float("inf"))
    bundle = build(model, tmp_path / "bundle", lowering="auto", timing_cache=False)
    packed = [layer for layer in bundle.manifest.layers if layer.kind != "dense"]
    assert bundle.manifest.plan.status == "measured"
    assert packed
    for layer in packed:
        assert layer.measured
        assert set(layer.candidates) >= {"dense", "plugin"}
        assert min(layer.candidates.values()) == layer.candidates["dense"]  # it stands first, and has fewest operators
        assert layer.lowering == "dense"
    assert len({layer.candidates["dense"] for layer in packed}) > 1
    assert built.count("side by side") == 1
    assert len(built) <= 3  # and two whole nets, with their dead channels and without


def test_predicted_plan(machine: None, model: Path, tmp_path: Path) -> None:
    bundle = build(model, tmp_path / "bundle", lowering="auto", measure=False)
    assert bundle.manifest.plan.status == "unmeasured"
    packed = [layer for layer in bundle.manifest.layers if layer.kind != "dense"]
    assert all(layer.candidates["dense"] == 1.0 for layer in packed)
    assert all("plugin" in layer.candidates for layer in packed)


def test_timing_cache_of_tactics(machine: None, model: Path, tmp_path: Path, timing_cache: Path) -> None:
    build(model, tmp_path / "bundle")
    (file,) = timing_cache.glob("*.tactics")
    # the worker looks for the GPU itself, and there is none behind the stand-in
    assert file.name == "tests.engine.trt.recording-tensorrt-11.4.0-any.tactics"
    assert file.read_bytes() == b"timed"
    file.unlink()
    build(model, tmp_path / "other", timing_cache=False)
    assert not list(timing_cache.glob("*.tactics"))


def test_bench_reports_what_trtexec_does(
    bundle: Bundle, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trtkp.comparison.bench.GPU_SECONDS", 0.05)
    (result,) = trtkp.bench([bundle], batch=2, runs=3)
    assert [found.graphs for found in result.gpu] == [False, True]
    for found in result.gpu:
        # a tick of the stand-in's clock between two events
        assert (found.h2d.median_ms, found.gpu.median_ms, found.d2h.median_ms) == (1.0, 1.0, 1.0)
        assert found.latency.median_ms == 3.0
        assert found.gpu.runs >= 10
        assert found.throughput > 0
        assert found.batch == 2
    show_bench([result], json=False)
    text = capsys.readouterr().out
    assert all(word in text for word in ("CUDA graph", "H2D", "compute", "D2H", "latency", "enqueue"))
    assert re.search(r"yes +1\.000 +1\.000 +1\.000 +3\.000", text)
    show_bench([result], json=True)
    assert json.loads(capsys.readouterr().out)["results"][0]["gpu"][1]["latency"]["median_ms"] == 3.0


def test_compare_reports_layers(machine: None, model: Path, bundle: Bundle, tmp_path: Path) -> None:
    dense = build(model, tmp_path / "dense", lowering="dense")
    comparison = trtkp.compare([dense, bundle], batches=(2,), runs=4, openings=2)
    names = [[layer.name for layer in entry.layers.layers] for entry in comparison.entries if entry.layers is not None]
    assert len(names) == 2
    assert set(names[0]) == set(names[1]) >= {"w0", "w1", "w2"}
    assert comparison.entries[1].difference is not None
    assert comparison.entries[1].difference.relative < 1e-5


def test_command_line(machine: None, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from trtkp.cli.app import run
    from trtkp.comparison.settings import build_command

    line = [
        "build", str(model), "-o", str(tmp_path / "bundle"), "--method", "vskp", "--ratio", "0.5",
        "--filter-group", "8", "-b", "tensorrt", "--lowering", "plugin", "--max", "4x3x8x8", "--level", "2",
        "--workspace", "128", "--tune-batches", "1,2",
        "--version-compatible", "--hardware-compatible", "ampere+", "--refit", "--strip-weights", "--embed-plugins",
    ]  # fmt: skip
    assert run(line) == 0
    bundle = trtkp.load(tmp_path / "bundle")
    assert bundle.manifest.tensorrt is not None
    options = "--level 2 --workspace 128 --tune-batches 1,2 --hardware-compatible ampere+ --version-compatible"
    assert f"{options} --embed-plugins --refit --strip-weights" in build_command(bundle)
    assert run(["build", str(model), "-o", str(tmp_path / "other"), "--level", "2", "-b", "onnxruntime"]) == 2
    assert "mean nothing to backend onnxruntime" in capsys.readouterr().err

"""The builder on the stand-in: what it asks of TensorRT, and what it does with every refusal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.cuda.recording_device import RecordingDevice
from tests.engine.graphs import conv_net, image_profile
from tests.engine.trt import recording_tensorrt
from trtkp.engine.base import BuildRequest
from trtkp.engine.feeds import split_profile
from trtkp.engine.options import RunOptions, TrtOptions
from trtkp.engine.trt.builder import build_engine
from trtkp.engine.trt.runner import TrtEngineRunner
from trtkp.errors import InputError, JobError
from trtkp.shapes import Dim, ShapeRange

_FLOAT, _INT = onnx.TensorProto.FLOAT, onnx.TensorProto.INT32


def roi_net(path: Path) -> Path:
    """A convolution and RoiAlign, which a plugin computes: ``image [N, 3, 16, 16]`` to ``y [1, 8, 4, 4]``."""
    weights = [
        numpy_helper.from_array(np.ones((8, 3, 3, 3), np.float32), "w"),
        numpy_helper.from_array(np.array([[0, 0, 8, 8]], np.float32), "boxes"),
        numpy_helper.from_array(np.zeros(1, np.int64), "batch"),
    ]
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"], "conv", pads=[1] * 4),
        helper.make_node("RoiAlign", ["c", "boxes", "batch"], ["y"], "roi", output_height=4, output_width=4),
    ]
    return _save(path, nodes, [("y", _FLOAT, [1, 8, 4, 4])], weights)


def detector(path: Path, *, ours: bool = False) -> Path:
    """A convolution and EfficientNMS; with ``ours`` also an operator that names trtkp's plugins."""
    weights = [numpy_helper.from_array(np.ones((8, 3, 3, 3), np.float32), "w")]
    outputs = [
        ("count", _INT, [1, 1]), ("boxes", _FLOAT, [1, 10, 4]), ("scores", _FLOAT, [1, 10]), ("classes", _INT, [1, 10]),
    ]  # fmt: skip
    packed = helper.make_node(
        "KernelIndexConv", ["image", "w"], ["b"], "packed", domain="trtkp", plugin_namespace="trtkp"
    )
    nodes = [
        packed if ours else helper.make_node("Relu", ["image"], ["b"], "relu"),
        helper.make_node("Conv", ["image", "w"], ["s"], "conv", pads=[1] * 4),
        helper.make_node("EfficientNMS_TRT", ["b", "s"], [name for name, *_ in outputs], "nms", plugin_version="1"),
    ]
    return _save(path, nodes, outputs, weights)


def _save(path: Path, nodes: list[Any], outputs: list[Any], weights: list[Any]) -> Path:
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", _FLOAT, ["N", 3, 16, 16])],
        [helper.make_tensor_value_info(*output) for output in outputs],
        weights,
    )
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("trtkp", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), path)
    return path


Build = Callable[..., tuple[dict[str, Any], list[str]]]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Build on the stand-in. Returns the result and the warnings."""

    def build_(onnx_file: Path | None = None, **changes: Any) -> tuple[dict[str, Any], list[str]]:
        request = BuildRequest(onnx_file or conv_net(tmp_path / "net.onnx"), tmp_path, image_profile())
        said: list[str] = []
        result = build_engine(
            recording_tensorrt,
            replace(request, **changes),
            tmp_path / "model.engine",
            lambda severity, text: said.append(text) if severity == "warning" else None,
            lambda *_: None,
        )
        return result, said

    return build_


def flags() -> set[str]:
    known = recording_tensorrt.BuilderFlag.__members__
    return {name for name, flag in known.items() if flag in recording_tensorrt.RECORD["config"].flags}


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A file that the stand-in takes for our plugin library."""
    (tmp_path / "libtrtkp.so").write_bytes(b"")
    return tmp_path / "libtrtkp.so"


def test_standard_plugins_are_there_when_the_parser_needs_them(build: Build, tmp_path: Path) -> None:
    result, said = build(roi_net(tmp_path / "roi.onnx"))
    assert (result["plugin_layers"], said) == (0, [])
    recording_tensorrt._registry.all_creators.clear()
    recording_tensorrt.FAULTS.add("standard plugins")
    with pytest.raises(JobError, match=r"the parser refused the graph: RoiAlign node roi: Plugin not found: ROIAlign"):
        build(roi_net(tmp_path / "roi.onnx"))


def test_standard_plugins_are_there_when_an_engine_is_opened(build: Build, tmp_path: Path) -> None:
    build(roi_net(tmp_path / "roi.onnx"))
    recording_tensorrt._registry.all_creators.clear()  # as in a process that did not build it
    with TrtEngineRunner(tmp_path / "model.engine", recording_tensorrt, device=RecordingDevice()) as runner:
        found = runner.run({"image": np.ones((1, 3, 16, 16), np.float32)})["y"]
    assert found.shape == (1, 8, 4, 4)
    assert found.max() == 27


def test_other_plugins_stand_beside_ours(build: Build, tmp_path: Path, library: Path) -> None:
    assert build(detector(tmp_path / "plain.onnx"))[0]["plugin_layers"] == 0
    mixed = detector(tmp_path / "mixed.onnx", ours=True)
    assert build(mixed, plugins=library, plugin_nodes=1)[0]["plugin_layers"] == 1
    with pytest.raises(JobError, match="the graph has 2 operators of domain trtkp, but the network has 1 layers"):
        build(mixed, plugins=library, plugin_nodes=2)


def test_sparse_kernels_are_timed_where_weights_are_sparse(build: Build, tmp_path: Path) -> None:
    build(trt=TrtOptions(tmp_path / "cache"))
    assert "SPARSE_WEIGHTS" not in flags()
    build(trt=TrtOptions(tmp_path / "cache"), sparse=True)
    assert "SPARSE_WEIGHTS" in flags()
    dense, sparse = sorted((tmp_path / "cache").glob("*.tactics"), key=lambda path: len(path.name))
    assert sparse.name == dense.name.replace(".tactics", "-sparse.tactics")


def test_version_compatible_engine_carries_the_plugins_that_it_uses(
    build: Build, tmp_path: Path, library: Path
) -> None:
    roi = roi_net(tmp_path / "roi.onnx")
    result, _ = build(roi)
    assert result["carried_libraries"] == recording_tensorrt.RECORD["config"].plugins_to_serialize == []
    result, _ = build(roi, trt=TrtOptions(version_compatible=True))
    assert result["carried_libraries"] == ["libnvinfer_vc_plugin.so.11"]
    assert recording_tensorrt.RECORD["config"].plugins_to_serialize == ["/usr/lib/libnvinfer_vc_plugin.so.11"]
    result, _ = build(roi, trt=TrtOptions(embed_plugins=True), plugins=library)
    assert result["carried_libraries"] == ["libtrtkp.so", "libnvinfer_vc_plugin.so.11"]


def test_engine_without_the_lean_runtime_carries_no_code(build: Build, tmp_path: Path) -> None:
    def run(**options: Any) -> Any:
        chosen, device = RunOptions(**options), RecordingDevice()
        with TrtEngineRunner(tmp_path / "model.engine", recording_tensorrt, options=chosen, device=device) as runner:
            return runner.run({"image": np.ones((1, 3, 16, 16), np.float32)})["y"]

    build(trt=TrtOptions(version_compatible=True))
    with pytest.raises(JobError, match="setEngineHostCodeAllowed"):
        run()
    whole = run(allow_host_code=True)
    build(trt=TrtOptions(version_compatible=True, exclude_lean_runtime=True))
    assert {"VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"} <= flags()
    np.testing.assert_array_equal(run(), whole)


def test_stripped_engine_runs_with_its_weights(build: Build, tmp_path: Path) -> None:
    image = {"image": np.ones((1, 3, 16, 16), np.float32)}

    def run(refit_from: Path | None) -> Any:
        options = RunOptions(refit_from=refit_from)
        with TrtEngineRunner(
            tmp_path / "model.engine", recording_tensorrt, options=options, device=RecordingDevice()
        ) as runner:
            return runner.run(image)["y"]

    build()
    whole = run(None)
    for refit, flag in ((False, "REFIT_IDENTICAL"), (True, "REFIT")):
        build(trt=TrtOptions(refit=refit, strip_weights=True))
        assert flags() & {"REFIT", "REFIT_IDENTICAL", "STRIP_PLAN"} == {flag, "STRIP_PLAN"}
        assert not run(None).any()
        np.testing.assert_array_equal(run(tmp_path / "net.onnx"), whole)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("parser", "the parser refused the graph: Conv node conv0: unsupported attribute"),
        ("profile", "the builder refused the optimisation profile"),
        ("plan", "the builder failed: IBuilder::buildSerializedNetwork: no tactic fits"),
    ],
)
def test_refusals_name_the_file(build: Build, fault: str, words: str, tmp_path: Path) -> None:
    recording_tensorrt.FAULTS.add(fault)
    with pytest.raises(JobError) as caught:
        build()
    assert words in str(caught.value)
    assert "net.onnx" in str(caught.value)
    assert not (tmp_path / "model.engine").exists()


def test_shapes_outside_the_graph_are_refused(build: Build) -> None:
    shape = (1, 3, 8, 8)
    with pytest.raises(InputError, match="image"):
        build(profile={"image": ShapeRange(shape, shape, shape)})


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("cache is None", "TensorRT makes none, so every tactic is timed"),
        ("cache raises", "TensorRT makes none, so every tactic is timed"),
        ("set_timing_cache", "cannot be used and was set aside as"),
        ("combine", "cannot be combined with this build's times and was set aside as"),
        ("combine raises", "cannot be combined with this build's times and was set aside as"),
        ("serialize", None),
    ],
)
def test_cache_never_fails_a_build(build: Build, fault: str, words: str | None, tmp_path: Path) -> None:
    options = TrtOptions(tmp_path / "cache")
    assert build(trt=options)[1] == []
    (file,) = (tmp_path / "cache").glob("*.tactics")
    if fault.startswith("cache"):
        file.unlink()
    recording_tensorrt.FAULTS.add(fault)
    _, said = build(trt=options)
    assert len(said) == (words is not None)
    assert words is None or words in said[0]
    assert (tmp_path / "model.engine").stat().st_size
    recording_tensorrt.FAULTS.clear()
    assert build(trt=options)[1] == []
    assert file.read_bytes() == b"timed"


def test_engine_tuned_for_several_batches(build: Build, tmp_path: Path) -> None:
    build(trt=TrtOptions(tune_batches=(1, 3)))
    parts = [profile.shapes["image"] for profile in recording_tensorrt.RECORD["config"].profiles]
    assert [[shape[0] for shape in part] for part in parts] == [[1, 1, 1], [2, 3, 3], [4, 4, 4]]
    device = RecordingDevice()
    options = RunOptions(graphs=True)
    image = np.random.default_rng(0).standard_normal((4, 3, 16, 16)).astype(np.float32)
    with TrtEngineRunner(tmp_path / "model.engine", recording_tensorrt, options=options, device=device) as runner:
        assert str(runner.inputs[0].shape[0]) == str(Dim("image.0", 1, 4))
        whole = runner.run({"image": image})["y"]
        for batch in (1, 1, 2, 3, 3, 1, 4):
            np.testing.assert_allclose(runner.run({"image": image[:batch]})["y"], whole[:batch], rtol=1e-5)
        with pytest.raises(InputError, match=r"5, 3, 16, 16"):
            runner.run({"image": np.concatenate([image, image[:1]])})


@pytest.mark.parametrize(
    ("batches", "words"),
    [((5,), "--tune-batches 5: the batch goes from 1 to 4; see --min and --max"), ((), None)],
)
def test_batches_to_tune_for_are_within_the_profile(build: Build, batches: tuple[int, ...], words: str | None) -> None:
    if words is None:
        build(trt=TrtOptions(tune_batches=batches))
        assert len(recording_tensorrt.RECORD["config"].profiles) == 1
        return
    with pytest.raises(InputError) as caught:
        build(trt=TrtOptions(tune_batches=batches))
    assert words in str(caught.value)


def test_inputs_of_no_common_batch_are_not_split() -> None:
    def limits(low: int, high: int) -> ShapeRange:
        return ShapeRange((low, 3), (low, 3), (high, 3))

    parts = split_profile({"x": limits(1, 8), "fixed": limits(2, 2), "y": limits(1, 8)}, (2,))
    assert [part["fixed"] for part in parts] == [limits(2, 2)] * 2
    assert [part["y"].max[0] for part in parts] == [2, 8]
    for profile in ({"x": limits(1, 8), "y": limits(1, 4)}, {"x": limits(2, 2)}):
        with pytest.raises(InputError, match=r"--tune-batches: the inputs have (several|no) ranges of batch sizes"):
            split_profile(profile, (2,))

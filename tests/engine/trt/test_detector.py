"""Detectors in TensorRT-RTX: it builds them up to boxes and scores, and neither operator that suppresses overlaps.

The refusals are those of docs/guides/deploy.md. If one of these tests fails because an engine is built, say so there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import trtkp
from tests.models import write_classifier
from trtkp.engine import BuildRequest
from trtkp.engine.trt.tensorrt_rtx import TensorRTRTXBackend
from trtkp.errors import JobError
from trtkp.machine.gpu import find_gpus
from trtkp.machine.packages import importable
from trtkp.shapes import ShapeRange

pytestmark = pytest.mark.skipif(not importable("tensorrt_rtx"), reason="package tensorrt_rtx is not installed")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    """A pruned net of packed operators with their bodies: ``image [N, 3, 8, 8]`` to ``y [N, 5]``."""
    folder = tmp_path_factory.mktemp("packed")
    net = write_classifier(folder / "net.onnx", (3, 16, 32, 32))
    options = trtkp.BuildOptions(max=("1x3x8x8",), measure=False)
    bundle = trtkp.build(net, folder / "bundle", method="vskp", ratio=0.6, filter_group=8, options=options)
    model = onnx.load(bundle.file("model.onnx"))
    assert any(node.domain == "trtkp" for node in model.graph.node)
    return model


def detector(
    packed: onnx.ModelProto, path: Path, nms: str, outputs: dict[str, tuple[int, list[Any]]], **more: Any
) -> Path:
    """One box and its score from the net's outputs, then ``nms``."""
    model = onnx.ModelProto()
    model.CopyFrom(packed)
    constants = {"split": [4, 1], "box": [1, 1, 4], "score": [1, 1, 1]}
    limits = {} if more else {"most": np.array([1]), "iou": np.array([0.45], "f"), "threshold": np.array([0.25], "f")}
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name) for name, value in (constants | limits).items()
    )
    model.graph.node.extend(
        [
            helper.make_node("Split", ["y", "split"], ["b", "s"], "split", axis=1),
            helper.make_node("Reshape", ["b", "box"], ["boxes"], "boxes"),
            helper.make_node("Reshape", ["s", "score"], ["scores"], "scores"),
            helper.make_node(nms, ["boxes", "scores", *limits], list(outputs), "nms", **more),
        ]
    )
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(name, *found) for name, found in outputs.items())
    onnx.save(model, path)
    return path


def build(onnx_file: Path) -> Any:
    shape = (1, 3, 8, 8)
    request = BuildRequest(
        onnx_file, onnx_file.parent / "out", {"image": ShapeRange(shape, shape, shape)}, targets=("sm86",)
    )
    return TensorRTRTXBackend().build(request)


@pytest.fixture
def net(packed: onnx.ModelProto, tmp_path: Path) -> Callable[..., Path]:
    return partial(detector, packed, tmp_path / "net.onnx")


def test_packed_operators_up_to_boxes_and_scores(net: Callable[..., Path]) -> None:
    onnx_file = net("Concat", {"both": (onnx.TensorProto.FLOAT, [1, 1, 5])}, axis=2)
    built = build(onnx_file)
    assert built.engine_bytes > 0
    assert built.plugin_layers == 0


@pytest.mark.skipif(bool(find_gpus().gpus), reason="this machine has a GPU")
def test_non_max_suppression_is_parsed_and_not_built(net: Callable[..., Path]) -> None:
    onnx_file = net("NonMaxSuppression", {"kept": (onnx.TensorProto.INT64, ["k", 3])})
    with pytest.raises(JobError, match=r"the builder failed: .*has no runners that implement it"):
        build(onnx_file)


def test_efficient_nms_is_not_parsed(net: Callable[..., Path]) -> None:
    whole, real = onnx.TensorProto.INT32, onnx.TensorProto.FLOAT
    outputs = {"n": (whole, [1, 1]), "bb": (real, [1, 1, 4]), "sc": (real, [1, 1]), "c": (whole, [1, 1])}
    values = {"plugin_version": "1", "max_output_boxes": 1, "score_threshold": 0.25, "iou_threshold": 0.45}
    onnx_file = net("EfficientNMS_TRT", outputs, **values)
    words = r"EfficientNMS_TRT node nms: .*Plugin not found, are the plugin name, version"
    with pytest.raises(JobError, match=words) as caught:
        build(onnx_file)
    assert caught.value.layer == "nms"

"""Requests that are refused, and what is left of them: nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import trtkp
from tests.models import write_classifier
from tests.pipeline.whole import RTX, build, needs_rtx
from trtkp.errors import InputError
from trtkp.pruning import run as pruning


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "int4"}, "--precision int4: not known; use one of fp32, fp16, int8, fp8"),
        ({"threads": 0}, "--threads 0"),
        ({"backend": "tpu"}, "--backend tpu: not known; use one of auto, tensorrt"),
        ({"lowering": "winograd"}, "--lowering winograd: not known; use one of auto, dense, box"),
        ({"targets": ("sm86",)}, "backend onnxruntime has no option --target sm86"),
        ({"include": ("w9*",)}, r"no convolution is called w9\*; the model has w0, w1, w2"),
        ({"skip": ("w9",)}, "no convolution is called w9"),
        ({"min": ("8x3x8x8",), "opt": ("4x3x8x8",)}, "min <= opt <= max"),
        ({"opt": ("4x3x8",)}, "has 3 dimensions"),
        ({"opt": ("4x3x9x8",)}, "does not fit the input"),
        ({"opt": ("4x3xax8",)}, "not a shape"),
        ({"opt": ("other:4x3x8x8",)}, "no input of that name"),
    ],
)
def test_bad_options_write_nothing(classifier: Path, tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        build(classifier, tmp_path / "b", **{"backend": "onnxruntime"} | options)
    assert list(tmp_path.iterdir()) == []


def test_data_that_does_not_fit_is_found_before_the_work(classifier: Path, tmp_path: Path) -> None:
    from trtkp.data.labelled import LabelledData

    seen: list[str] = []
    data = LabelledData(np.zeros((2, 1, 8, 8), np.float32), np.zeros(2, np.int64))
    with pytest.raises(InputError, match=r"samples of shape \[1, 8, 8\], the model takes \[3, 8, 8\]"):
        trtkp.build(classifier, tmp_path / "b", data=data, progress=lambda *step: seen.append(step[0]))
    assert set(seen) == {"Load"}


def test_fp16_that_overflows_is_no_bundle(tmp_path: Path) -> None:
    model = onnx.load(write_classifier(tmp_path / "net.onnx"))
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 1e6, tensor.name))
    onnx.save(model, tmp_path / "large.onnx")
    with pytest.raises(InputError, match="float16 ends at 65504") as caught:
        build(tmp_path / "large.onnx", tmp_path / "b", precision="fp16")
    assert "--precision fp32" in str(caught.value)
    assert not (tmp_path / "b").exists()


def test_a_layer_of_which_nothing_would_be_left(classifier: Path, tmp_path: Path) -> None:
    """Whether the model is pruned first or built at once."""
    for command in (pruning.prune, trtkp.build):
        with pytest.raises(InputError, match="soks would remove all filters of it; prune less, or leave") as caught:
            command(classifier, tmp_path / "b", method="soks", ratio=0.99, groups=1, remove_filters=True)
        assert caught.value.file == str(classifier)
        assert caught.value.layer in ("w0", "w1", "w2")
    assert list(tmp_path.iterdir()) == []


def test_settings_beside_a_method_object(classifier: Path, tmp_path: Path) -> None:
    for command in (trtkp.prune, trtkp.build):
        with pytest.raises(InputError, match="KEP was given with its settings, so share would have no effect"):
            command(classifier, tmp_path / "b", method=trtkp.KEP(n=2), share="per-layer")
    assert list(tmp_path.iterdir()) == []


@needs_rtx
def test_graph_that_the_parser_refuses_names_the_model(tmp_path: Path, classifier: Path) -> None:
    proto = onnx.load(classifier)
    proto.graph.node.insert(0, helper.make_node("Unique", ["image"], ["once"], "unique"))
    proto.graph.output.append(helper.make_tensor_value_info("once", onnx.TensorProto.FLOAT, [None]))
    onnx.save(proto, tmp_path / "odd.onnx")
    with pytest.raises(trtkp.JobError) as error:
        build(tmp_path / "odd.onnx", tmp_path / "b", **RTX)
    assert error.value.file == str(tmp_path / "odd.onnx")
    assert error.value.layer == "unique"

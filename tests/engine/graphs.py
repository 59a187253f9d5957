"""Small convolution nets as ONNX files, made in code."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from trtkp.shapes import Profile, ShapeRange

__all__ = ["conv_net", "image_profile"]


def image_profile(size: int = 16, batches: tuple[int, int, int] = (1, 2, 4)) -> Profile:
    """Batch sizes (min, opt, max) of ``conv_net``'s input."""
    low, opt, high = ((batch, 3, size, size) for batch in batches)
    return {"image": ShapeRange(low, opt, high)}


def conv_net(
    path: Path,
    channels: Sequence[int] = (3, 8, 16),
    *,
    dtype: type = np.float32,
    size: int = 16,
    external: bool = False,
    unknown_op: str | None = None,
) -> Path:
    """3x3 convolutions with ReLU, then a global mean: ``image [N, 3, size, size]`` to ``y [N, F, 1, 1]``."""
    rng = np.random.default_rng(0)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes, weights, value = [], [], "image"
    for index, (before, after) in enumerate(pairwise(channels)):
        weight = rng.standard_normal((after, before, 3, 3)) * np.sqrt(2 / (9 * before))
        weights.append(numpy_helper.from_array(weight.astype(dtype), f"w{index}"))
        nodes.append(helper.make_node("Conv", [value, f"w{index}"], [f"c{index}"], f"conv{index}", pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"], f"relu{index}"))
        value = f"r{index}"
    if unknown_op:
        nodes.append(helper.make_node(unknown_op, [value], ["odd"], "odd_one"))
        value = "odd"
    nodes.append(helper.make_node("GlobalAveragePool", [value], ["y"], "mean"))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", kind, ["N", 3, size, size])],
        [helper.make_tensor_value_info("y", kind, ["N", channels[-1], 1, 1])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save_model(
        model, path, save_as_external_data=external, location="weights.bin" if external else None, size_threshold=0
    )
    return path

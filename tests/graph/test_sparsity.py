"""2:4 weights in graphs of standard operators."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from trtkp.graph.sparsity import holds_two_four, is_two_four

_HALF = np.tile([1.0, 0.0, 0.0, 2.0], 4).astype(np.float32)


def model(op: str, weight: np.ndarray, **attributes: Any) -> ir.Model:
    node = helper.make_node(op, ["x", "w"], ["y"], "layer", **attributes)
    inputs = [helper.make_tensor_value_info("x", 1, None)]
    outputs = [helper.make_tensor_value_info("y", 1, None)]
    graph = helper.make_graph([node], "g", inputs, outputs, [numpy_helper.from_array(weight.astype(np.float32), "w")])
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))


@pytest.mark.parametrize(
    ("op", "weight", "attributes", "found"),
    [
        ("Conv", np.broadcast_to(_HALF[:, None, None], (4, 16, 3, 3)), {}, True),
        ("Conv", np.broadcast_to(_HALF[:, None, None, None], (16, 16, 3, 3)), {}, False),  # along the filters
        ("Conv", np.ones((4, 16, 1, 1)), {}, False),
        ("Conv", np.zeros((4, 16, 1, 1)), {}, False),
        ("Conv", np.eye(2)[:, :, None, None], {"group": 1}, False),  # no quad in two channels
        ("Conv", np.broadcast_to(np.append(_HALF, [1, 1])[:, None, None], (4, 18, 1, 1)), {}, True),  # a short quad
        ("Gemm", np.broadcast_to(_HALF[:, None], (16, 8)), {}, True),
        ("Gemm", np.broadcast_to(_HALF, (8, 16)), {}, False),
        ("Gemm", np.broadcast_to(_HALF, (8, 16)), {"transB": 1}, True),
        ("MatMul", np.broadcast_to(_HALF[:, None], (2, 16, 8)), {}, True),
        ("Add", np.broadcast_to(_HALF[:, None], (16, 8)), {}, False),
    ],
)
def test_along_the_axis_that_is_summed(op: str, weight: np.ndarray, attributes: dict[str, int], found: bool) -> None:
    assert holds_two_four(model(op, weight, **attributes)) is found


def test_one_full_quad_is_enough_to_be_dense() -> None:
    weight = np.broadcast_to(_HALF[:, None, None], (4, 16, 3, 3)).copy()
    weight[3, 12:, 2, 2] = 1
    assert not is_two_four(weight, axis=1)

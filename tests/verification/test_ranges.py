"""Activations beyond half precision are found although ONNX Runtime's CPU kernels compute in float32."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from trtkp.graph.passes.precision import to_float16
from trtkp.verification.ranges import FLOAT16_MAX, beyond_float16


def net(scale: float, activation: str = "Relu") -> ir.Model:
    """x [N, 2, 4, 4] -> Conv (every weight is ``scale``) -> activation -> Conv (1 / scale)."""
    values = {
        "w1": np.full((2, 2, 1, 1), scale, np.float32),
        "w2": np.full((2, 2, 1, 1), 1 / scale, np.float32),
    }
    x = ir.val("x", ir.DataType.FLOAT, ["N", 2, 4, 4])
    weights = {
        name: ir.val(name, ir.DataType.FLOAT, array.shape, const_value=ir.tensor(array, name=name))
        for name, array in values.items()
    }
    first = ir.node("Conv", [x, weights["w1"]], name="first")
    middle = ir.node(activation, first.outputs, name="middle")
    last = ir.node("Conv", [middle.outputs[0], weights["w2"]], name="last")
    for name, node in (("a", first), ("b", middle), ("y", last)):
        output = node.outputs[0]
        output.name, output.dtype, output.shape = name, ir.DataType.FLOAT, ir.Shape(["N", 2, 4, 4])
    graph = ir.Graph(
        [x], last.outputs, nodes=[first, middle, last], initializers=list(weights.values()),
        opset_imports={"": 18}, name="net",
    )  # fmt: skip
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize("activation", ["Relu", "Neg"])
def test_a_convolution_that_overflows_is_named(activation: str) -> None:
    found = beyond_float16(to_float16(net(6e4, activation)), {"x": (3, 2, 4, 4)})
    assert found is not None
    name, size = found
    assert name == "a"
    assert size > FLOAT16_MAX


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_what_fits_passes(scale: float) -> None:
    assert beyond_float16(to_float16(net(scale)), {"x": (3, 2, 4, 4)}) is None


def test_a_float32_graph_has_nothing_to_look_at() -> None:
    assert beyond_float16(net(1e30), {"x": (1, 2, 4, 4)}) is None


def test_the_model_is_not_changed() -> None:
    model = to_float16(net(6e4))
    before = ir.to_proto(model).SerializeToString()
    beyond_float16(model, {"x": (1, 2, 4, 4)})
    assert ir.to_proto(model).SerializeToString() == before

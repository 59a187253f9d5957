"""Find activations that float16 cannot hold, before the engine runs on a GPU.

ONNX Runtime computes float16 graphs in float32 on the CPU, so an activation beyond float16 goes unnoticed there. On a
GPU it becomes infinite.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from trtkp.shapes import Shape

__all__ = ["FLOAT16_MAX", "beyond_float16"]

#: The largest finite float16, 65504.
FLOAT16_MAX = float(np.finfo(np.float16).max)

#: Operators whose outputs are never larger than their inputs (or than 1), and therefore need no check.
_BOUNDED = frozenset(
    [
        "Relu",
        "Clip",
        "Sigmoid",
        "HardSigmoid",
        "MaxPool",
        "Concat",
        "Reshape",
        "Transpose",
        "Flatten",
        "Slice",
        "Gather",
    ]
)


def beyond_float16(model: ir.Model, shapes: Mapping[str, Shape], seed: int = 0) -> tuple[str, float] | None:
    """Return the first activation, in graph order, that float16 cannot hold, and its magnitude; None if all fit.

    Args:
        model: a graph of standard operators, of which the float16 values are checked.
        shapes: shape of every input, by name. The inputs are standard normal.
        seed: seed of the inputs.
    """
    # Append to every value: Cast to float32, Abs, ReduceMax. Only these maxima become outputs.
    from trtkp.engine.feeds import random_feeds
    from trtkp.engine.onnxruntime import OrtRunner

    probe = model.clone()
    made: list[ir.Node] = []
    names: dict[str, str] = {}
    for node in list(probe.graph):
        for value in node.outputs:
            if value.dtype != ir.DataType.FLOAT16 or node.op_type in _BOUNDED or not value.name:
                continue
            wide = ir.node("Cast", [value], {"to": ir.DataType.FLOAT})
            size = ir.node("Abs", [wide.outputs[0]])
            largest = ir.node("ReduceMax", [size.outputs[0]], {"keepdims": 0})
            output = largest.outputs[0]
            output.name, output.type = f"trtkp_largest_{len(names)}", ir.TensorType(ir.DataType.FLOAT)
            output.shape = ir.Shape([])
            names[output.name] = value.name
            made += [wide, size, largest]
    if not names:
        return None
    probe.graph.extend(made)
    probe.graph.outputs.clear()
    probe.graph.outputs.extend(node.outputs[0] for node in made if node.op_type == "ReduceMax")
    with OrtRunner(probe) as runner:
        for name, largest_value in runner.run(random_feeds(runner.inputs, shapes, seed)).items():
            if not float(largest_value) <= FLOAT16_MAX:  # NaN and infinity too
                return names[name], float(largest_value)
    return None

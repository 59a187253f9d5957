"""Chains: which convolution reads the output of another, with nothing in between that mixes channels."""

from __future__ import annotations

import onnx_ir as ir

from trtkp.graph.edit import only_consumer, weight_name
from trtkp.graph.layers import is_conv2d

__all__ = ["next_convolutions"]

#: Operators whose output channel depends on the same channel of their input only.
_CHANNELWISE = frozenset(
    [
        "BatchNormalization", "Relu", "Clip", "LeakyRelu", "Elu", "HardSwish", "Sigmoid", "Tanh", "Identity", "Dropout",
        "MaxPool", "AveragePool", "Cast",
    ]
)  # fmt: skip


def next_convolutions(model: ir.Model) -> dict[str, str]:
    """Weight name of a convolution to the weight name of the convolution that reads its output.

    Only convolutions of one ONNX group count as readers, and only if nothing else reads the values on the way.
    """
    found = {}
    for node in model.graph:
        name = weight_name(node) if is_conv2d(node) else None
        reader = only_consumer(node.outputs[0]) if name is not None else None
        while reader is not None and reader.domain == "" and reader.op_type in _CHANNELWISE:
            reader = only_consumer(reader.outputs[0])
        if name is None or reader is None or not is_conv2d(reader) or reader.attributes.get_int("group", 1) != 1:
            continue
        following = weight_name(reader)
        if following is not None:
            found[name] = following
    return found

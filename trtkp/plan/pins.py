"""Pins: the tactic that a packed node asks its plugin for.

TensorRT times tactics on made-up inputs, lists included, but the time of our kernels depends on what the lists hold. So
the plan predicts the tactic for the true lists, and names it on the node. The plugin then offers that tactic alone, on
GPUs of the compute capability that the pin names; elsewhere, or where the tactic cannot compute every shape of the
profile, it offers all that can.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import onnx_ir as ir

from trtkp.errors import InputError
from trtkp.graph.passes.pack import packed_nodes, read_packed
from trtkp.shapes import Shape

if TYPE_CHECKING:
    from trtkp.plan.target import EngineTarget

__all__ = ["ATTRIBUTE", "predicted_pins", "write_pins"]

#: The attribute of a node that names the tactic for one GPU or several: ``sm_90=mma_64x64;sm_80=mma_128x64``.
ATTRIBUTE = "tactic"


def predicted_pins(model: ir.Model, value_shapes: Mapping[str, Shape], target: EngineTarget) -> dict[str, str]:
    """Node name to its pin, for every packed node that has a prediction for the target's GPU.

    Args:
        model: the packed model.
        value_shapes: shapes of the nodes' inputs and outputs, at the profile's ``opt``.
        target: the GPU, with the plugin library.
    """
    pins = {}
    for node in packed_nodes(model):
        read, written = (value_shapes[str(v.name)] for v in (node.inputs[0], node.outputs[0]) if v is not None)
        try:
            found = target.predicted_tactic(node, read_packed(node)[1], read, written)
        except InputError:  # the kernels do not compute this layer, so no plugin will
            continue
        pins[str(node.name)] = f"sm_{target.gpu.capability}={found.tactic}"
    return pins


def write_pins(model: ir.Model, pins: Mapping[str, str]) -> None:
    """Write pins on the packed nodes of a model that have one."""
    for node in packed_nodes(model):
        if str(node.name) in pins:
            node.attributes[ATTRIBUTE] = ir.AttrString(ATTRIBUTE, pins[str(node.name)])

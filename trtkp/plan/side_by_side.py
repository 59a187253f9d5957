"""Many single-layer models in one network, and the share of each in the network's profile.

Building an engine takes TensorRT seconds to minutes, whatever is in it, so the layers of a race share one. Each keeps
inputs and outputs of its own. Its names begin with its slot's, by which the times of the profile are assigned to it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

import onnx_ir as ir

from trtkp.engine.base import EngineProfile

__all__ = ["shares", "side_by_side"]

#: What the names of a slot begin with. In names of TensorRT's own (``Reformatting CopyNode for Input Tensor 0 to ...``)
#: it stands in the middle. A user's layer of such a name stands behind a slash.
_SLOT = re.compile(r"(?<![\w/])slot\d+(?=/)")


def side_by_side(models: Mapping[str, ir.Model]) -> ir.Model:
    """One model with the nodes of all.

    Args:
        models: the models by slot: ``slot0``, ``slot1``, ... They are not changed.
    """
    graph = ir.Graph([], [], nodes=[], name="side by side")
    whole = ir.Model(graph, ir_version=10)
    for slot, model in models.items():
        part = model.clone()
        initializers = list(part.graph.initializers.values())
        part.graph.initializers.clear()
        for value in (*part.graph.inputs, *initializers):
            value.name = f"{slot}/{value.name}"
        inputs, outputs, nodes = list(part.graph.inputs), list(part.graph.outputs), list(part.graph)
        part.graph.inputs.clear()
        part.graph.outputs.clear()
        part.graph.remove(nodes)
        for node in nodes:
            node.name = f"{slot}/{node.name or node.op_type}"
            for value in node.outputs:
                value.name = f"{slot}/{value.name}" if value.name else value.name
        graph.inputs.extend(inputs)
        graph.outputs.extend(outputs)
        for value in initializers:
            graph.register_initializer(value)
        graph.extend(nodes)
        graph.opset_imports.update(part.graph.opset_imports)
        whole.functions.update(part.functions)
    return whole


def shares(profile: EngineProfile) -> dict[str, float]:
    """Milliseconds of every slot in one profile.

    A slot is missing if the profile names none of its layers, or one that it shares with another slot: TensorRT may
    fuse layers that have nothing to do with each other, and their time cannot be divided.

    Example:
        >>> from trtkp.engine.base import NodeTime
        >>> nodes = [NodeTime(f"slot{i}/conv", "Conv", (), (), ms) for i, ms in ((0, 1.0), (1, 2.0), (0, 0.5))]
        >>> shares(EngineProfile((*nodes, NodeTime("copy", "", (), ("slot1/y", "slot2/y"), 3.0)), 6.5, 20))
        {'slot0': 1.5}
    """
    taken: dict[str, float] = defaultdict(float)
    shared: set[str] = set()
    for node in profile.nodes:
        # Inputs tell only where nothing else does: equal constants of several slots can become one, with one's name.
        slots = _slots(node.name, *node.outputs) or _slots(*node.inputs)
        if len(slots) > 1:
            shared |= slots
        for slot in slots:
            taken[slot] += node.ms
    return {slot: ms for slot, ms in taken.items() if slot not in shared and ms > 0}


def _slots(*names: str) -> set[str]:
    return {slot for name in names for slot in _SLOT.findall(name)}

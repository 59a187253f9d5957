"""Small helpers for editing an ONNX IR graph: constants, initialisers, chains of values with one reader."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

__all__ = [
    "WEIGHT",
    "add_initializer",
    "constant",
    "finish",
    "input_at",
    "ints",
    "only_consumer",
    "replace_nodes",
    "same_shape",
    "weight_name",
]

#: Node metadata key: name of the parameter that this convolution's weight comes from, even after a pass has folded or
#: packed it.
WEIGHT = "trtkp.weight"


def constant(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """The array of an initialiser or of a Constant node's output; None for any other value."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return tensor.numpy() if tensor is not None else None


def input_at(node: ir.Node, index: int) -> ir.Value | None:
    """An input of a node; None if it is empty, or if the node has fewer inputs."""
    return node.inputs[index] if index < len(node.inputs) else None


def ints(node: ir.Node, name: str, default: Sequence[int]) -> tuple[int, ...]:
    """An attribute that is a list of integers, or its default."""
    attribute = node.attributes.get(name)
    return tuple(attribute.as_ints()) if attribute is not None else tuple(default)


def weight_name(node: ir.Node) -> str | None:
    """Parameter name of a convolution's weight, as an earlier pass recorded it or else as the initialiser is called.

    None if the weight is computed by other nodes.
    """
    noted = node.metadata_props.get(WEIGHT)
    weight = input_at(node, 1)
    if noted is None and weight is not None and constant(weight) is not None:
        noted = weight.name
    return noted


def only_consumer(value: ir.Value) -> ir.Node | None:
    """The only reader of a value; None if it has none or several, is read twice, or is a graph output."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def same_shape(left: ir.Value, right: ir.Value) -> bool:
    """Whether both shapes are known and equal, dynamic dimensions by name: an Add of the two broadcasts nothing."""
    if left.shape is None or right.shape is None or left.dtype != right.dtype:
        return False
    known = all(isinstance(dim, int) or dim.value is not None for dim in (*left.shape, *right.shape))
    return known and list(left.shape) == list(right.shape)


def add_initializer(graph: ir.Graph, name: str, array: npt.NDArray[Any]) -> ir.Value:
    """Add an initialiser. If the name is taken, a number is appended to it."""
    unique = name if name not in graph.initializers else f"{name}.{_free_number(graph, name)}"
    array = np.ascontiguousarray(array).reshape(np.shape(array))  # ascontiguousarray makes a vector of a scalar
    value = ir.val(unique, ir.DataType.from_numpy(array.dtype), array.shape, const_value=ir.tensor(array, name=unique))
    graph.register_initializer(value)
    return value


def _free_number(graph: ir.Graph, name: str) -> int:
    """A number that no initialiser ``name.NUMBER`` has: the smallest, if those that are taken are in a row from 1.

    Found by doubling and bisection. Counting up takes quadratic time where a long chain of additions is folded into one
    convolution, and each gives its bias a new number.
    """
    taken, free = 0, 1
    while f"{name}.{free}" in graph.initializers:
        taken, free = free, 2 * free
    while free - taken > 1:
        middle = (taken + free) // 2
        taken, free = (middle, free) if f"{name}.{middle}" in graph.initializers else (taken, middle)
    return free


def replace_nodes(old: Sequence[ir.Node], new: Iterable[ir.Node], before: ir.Value, after: ir.Value) -> None:
    """Replace nodes.

    Args:
        old: nodes to remove, in graph order.
        new: nodes to insert where the last old node was, so that all inputs have been computed by then.
        before: the output of the old nodes.
        after: the output of the new nodes. It takes over name, type, shape and uses of ``before``.
    """
    graph = old[-1].graph
    assert isinstance(graph, ir.Graph)
    ir.convenience.replace_nodes_and_values(graph, old[-1], list(old), list(new), [before], [after])


def finish(model: ir.Model) -> None:
    """Remove nodes, initialisers and functions that nothing uses any more."""
    ir.passes.Sequential(common_passes.RemoveUnusedNodesPass(), common_passes.RemoveUnusedFunctionsPass())(model)

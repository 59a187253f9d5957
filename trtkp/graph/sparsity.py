"""Find the weights whose zeros a library may skip by itself: 2:4, which sparse tensor cores compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from trtkp.graph.edit import constant
from trtkp.index.index_set import QUAD, QUAD_KEPT

__all__ = ["holds_two_four", "is_two_four"]


def holds_two_four(model: ir.Model) -> bool:
    """Whether a convolution or matrix product of standard operators has constant 2:4 weights."""
    return any(_weight_is_two_four(node) for node in model.graph)


def _weight_is_two_four(node: ir.Node) -> bool:
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("Conv", "MatMul", "Gemm"):
        return False
    weight = constant(node.inputs[1])
    if weight is None or weight.ndim < 2:
        return False
    if node.op_type == "Conv":
        return is_two_four(weight, axis=1)
    transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
    return is_two_four(weight, axis=-1 if transposed else -2)


def is_two_four(weight: npt.NDArray[Any], axis: int) -> bool:
    """Whether at most two of every four consecutive weights along an axis are not 0, and not all of them are.

    Args:
        weight: the weights.
        axis: the axis that the layer sums over. The last four may be fewer; an axis of less than four has no quads.

    Example:
        >>> is_two_four(np.array([[1, 0, 0, 2, 0, 3, 4, 0]]), axis=1), is_two_four(np.array([[1, 2, 3, 0]]), axis=1)
        (True, False)
    """
    used = np.moveaxis(weight != 0, axis, -1)
    length = used.shape[-1]
    quads = -(-length // QUAD)
    count = int(np.count_nonzero(used))
    if length < QUAD or not 0 < count <= used.size // length * quads * QUAD_KEPT:
        return False
    padded = np.zeros((*used.shape[:-1], quads * QUAD), bool)
    padded[..., :length] = used
    return bool(padded.reshape(*used.shape[:-1], quads, QUAD).sum(-1).max() <= QUAD_KEPT)

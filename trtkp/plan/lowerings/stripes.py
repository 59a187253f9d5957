"""Lowerings of stripes: smaller kernels for the filter groups.

- ``box``: one convolution per filter group, of the bounding box of its taps.
- ``rectangles``: per filter group a sum of up to four small convolutions, which cover its taps at least cost
  (`lowerings.cover`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from trtkp.graph.packing import PackedConv
from trtkp.plan.lowerings.cover import Rectangle, bounding_box, cover
from trtkp.plan.lowerings.lowering import Built, Lowering, LoweringContext
from trtkp.plan.lowerings.work import Work

__all__ = ["BOX", "MAX_GROUPS", "RECTANGLES"]

#: At most this many filter groups, because each is at least one convolution over the whole input. The authors of
#: asymmetric kernel shapes use 1, 2 or 4 groups.
MAX_GROUPS = 8


def _stripe_groups(packed: PackedConv) -> list[tuple[npt.NDArray[np.int32], tuple[int, ...], npt.NDArray[Any]]]:
    """Filters, taps and weight [filters, taps, C] of every filter group, without padding."""
    filters, channels, rows, columns = packed.weight_shape
    groups = []
    for g, taps in enumerate(packed.index):
        own = (packed.row_group == g) & (packed.filters < filters)
        listed = taps < rows * columns
        weight = packed.weight[own].reshape(int(own.sum()), len(taps), channels)
        groups.append((packed.filters[own], tuple(int(t) for t in taps[listed]), weight[:, listed]))
    return groups


def _stripes_apply(packed: PackedConv) -> str | None:
    if packed.base != "StripeConv" or packed.groups != 1:
        return "lists are not stripes" if packed.groups == 1 else "grouped convolution"
    groups = _stripe_groups(packed)
    if len(groups) > MAX_GROUPS:
        return f"{len(groups)} filter groups, more than {MAX_GROUPS}"
    if any(not taps for _, taps, _ in groups):
        return "a filter group keeps nothing"
    return None


def _boxes(packed: PackedConv, taps: tuple[int, ...]) -> tuple[Rectangle, ...]:
    return (bounding_box(taps, packed.weight_shape[3]),)


def _covers(packed: PackedConv, taps: tuple[int, ...]) -> tuple[Rectangle, ...]:
    return cover(taps, packed.weight_shape[3])


def _build_stripes(context: LoweringContext, rectangles_of: Callable[..., tuple[Rectangle, ...]]) -> Built:
    packed, columns = context.packed, context.packed.weight_shape[3]
    parts, order = [], []
    for filters, taps, weight in _stripe_groups(packed):
        left = set(taps)
        total: ir.Value | None = None
        for rectangle in rectangles_of(packed, taps):
            inside = rectangle.taps(columns)
            kernel = np.zeros((*weight.shape[::2], len(inside)), weight.dtype)  # [filters, C, taps]
            for position, tap in enumerate(inside):
                if tap in left:  # a tap that two rectangles hold counts once
                    kernel[:, :, position] = weight[:, taps.index(tap)]
                    left.discard(tap)
            kernel = kernel.reshape(*kernel.shape[:2], *rectangle.shape)
            part = context.conv(context.x, kernel, context.bias[filters] if total is None else None, rectangle)
            total = part if total is None else context.emit("Add", total, part)
        assert total is not None
        parts.append(total)
        order.append(filters)
    joined = parts[0] if len(parts) == 1 else context.emit("Concat", *parts, axis=1)
    return joined, np.concatenate(order)


def _stripes_work(packed: PackedConv, rectangles_of: Callable[..., tuple[Rectangle, ...]]) -> Work:
    filters, _, rows, columns = packed.weight_shape
    groups = [(len(members) / filters, rectangles_of(packed, taps)) for members, taps, _ in _stripe_groups(packed)]
    convolutions = sum(len(parts) for _, parts in groups)
    additions = sum(share * (len(parts) - 1) for share, parts in groups)
    joins = 1 if len(groups) > 1 else 0
    return Work(
        macs=sum(share * part.area for share, parts in groups for part in parts) / (rows * columns),
        reads=convolutions,
        writes=1 + additions + 2 * joins,  # partial sums are read back by the Add, parts by the Concat
        kernels=convolutions + joins,
    )


BOX = Lowering(
    "box", "stripes: one Conv per filter group, of the taps' bounding box", _stripes_apply,
    lambda context: _build_stripes(context, _boxes), lambda packed: _stripes_work(packed, _boxes),
)  # fmt: skip
RECTANGLES = Lowering(
    "rectangles", "stripes: a sum of small Convs that cover the taps", _stripes_apply,
    lambda context: _build_stripes(context, _covers), lambda packed: _stripes_work(packed, _covers),
)  # fmt: skip

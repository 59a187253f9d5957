"""The lowering ``taps``: one list for the whole layer, with any pattern of channels and taps.

A depthwise convolution with one-hot kernels copies the listed (channel, tap) pairs into channels of their own (im2col).
A 1x1 convolution then computes the layer from them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trtkp.graph.packing import PackedConv
from trtkp.plan.lowerings.lowering import Built, Lowering, LoweringContext
from trtkp.plan.lowerings.work import Work

__all__ = ["TAPS"]


def _one_list(packed: PackedConv) -> str | None:
    if packed.groups != 1:
        return "grouped convolution"
    if len(packed.index) != 1:
        return f"{len(packed.index)} lists, not one for the layer"
    if packed.weight_shape[2:] == (1, 1):
        return "1x1 kernel"
    if not len(_listed(packed)[0]):
        return "the layer keeps nothing"
    return None


def _listed(packed: PackedConv) -> tuple[npt.NDArray[np.int64], list[npt.NDArray[np.int64]]]:
    """The channels of the layer's list and, for each, the packed columns of its taps."""
    _, channels, rows, columns = packed.weight_shape
    tap, channel = (values[0] for values in packed.columns())
    real = np.flatnonzero((tap < rows * columns) & (channel < channels))
    order = real[np.argsort(channel[real], kind="stable")]
    listed, begins = np.unique(channel[order], return_index=True)
    return listed, np.split(order, begins[1:])


def _build_taps(context: LoweringContext) -> Built:
    """The depthwise convolution that copies the listed pairs, then the 1x1 convolution."""
    packed = context.packed
    filters, channels, rows, columns = packed.weight_shape
    listed, positions = _listed(packed)
    tap = packed.columns()[0][0]
    # A depthwise convolution gives every channel the same number of outputs: channels with fewer taps get zeros.
    width = max(len(p) for p in positions)
    select = np.zeros((len(listed), width, rows * columns), packed.weight.dtype)
    weight = np.zeros((filters + 1, len(listed), width), packed.weight.dtype)
    for c, position in enumerate(positions):
        select[c, np.arange(len(position)), tap[position]] = 1
        weight[packed.filters, c, : len(position)] = packed.weight[:, position]
    x = context.x if len(listed) == channels else context.gather(context.x, listed)
    columns_of_x = context.conv(x, select.reshape(-1, 1, rows, columns), None, groups=len(listed))
    return context.pointwise(columns_of_x, weight[:filters].reshape(filters, -1, 1, 1), context.bias), None


def _taps_work(packed: PackedConv) -> Work:
    listed, positions = _listed(packed)
    channels, taps = packed.weight_shape[1], packed.weight_shape[2] * packed.weight_shape[3]
    columns = len(listed) * max(len(position) for position in positions) / channels
    return Work(macs=(columns + columns / packed.weight_shape[0]) / taps, reads=1 + 2 * columns, kernels=2)


TAPS = Lowering(
    "taps", "one list: one-hot depthwise Conv as im2col, then a 1x1 Conv", _one_list, _build_taps, _taps_work
)

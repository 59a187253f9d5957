"""Lowerings with a Gather: copy the channels that are read, then convolve those and nothing else.

- ``gather`` takes the filter groups of the index set as they are, in one grouped convolution.
- ``gather-N`` regroups the filters into N groups of equal size (`lowerings.regroup`), in one grouped convolution.
  ``gather-1`` is a dense convolution over the channels that any filter reads.
- ``split`` regroups the filters into groups of any size. Each group is a convolution of its own, and Concat joins them,
  so no list is padded to the length of the longest.

``gather-N`` and ``split`` take lists of any kind: a filter reads a channel if it keeps any of its taps.
"""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from trtkp.graph.packing import PackedConv
from trtkp.machine.cpu import vector_floats
from trtkp.plan.lowerings.lowering import Built, Lowering, LoweringContext
from trtkp.plan.lowerings.regroup import FILTER_MULTIPLE, Grouping, cheapest_groups, equal_groups, kept_kernels, regroup
from trtkp.plan.lowerings.work import Work, filter_rate

__all__ = ["EQUAL_GROUPS", "GATHER", "MAX_GATHER", "REGROUPED", "SPLIT", "list_multiple"]

#: A Gather may write at most this many times the input's channels. A larger copy costs more memory traffic than pruning
#: saves: with a list per filter it could be F times the input.
MAX_GATHER = 4
#: The N of ``gather-N``. Powers of two divide the filters of the usual nets; beyond 32 groups a group has too few
#: filters to compute at a good rate (`work.filter_rate`).
EQUAL_GROUPS = (1, 2, 4, 8, 16, 32)
#: At most this many convolutions in ``split``: every one costs a Gather and a launch.
MAX_SPLIT = 16
#: What one more convolution costs, in kernels computed at full rate. 64 kernels of 3x3 at 14x14 and batch 8 take about
#: 20 µs at the rate of `cost.CPU`, which is its time for a launch. `_split` scales it with the list multiple.
_SPLIT_COST = 64
#: A regrouped layer that computes more than this share of the dense kernels is not a candidate: the copy of its input
#: would cost more than it gains.
_MOST_KERNELS = 0.95


def list_multiple(dtype: npt.DTypeLike) -> int:
    """The multiple to which the channels of a group are padded.

    In half precision it is 8, the channels that a tensor core takes in one step. In fp32 it is the number of floats in
    one of this CPU's vectors, 8 with AVX2 and 16 with AVX-512. That is the block of ONNX Runtime's NCHWc layout: a
    grouped convolution with any other number of channels leaves that layout, and with it the fast kernels.
    """
    return 8 if np.dtype(dtype).itemsize == 2 else vector_floats()


def _applies(packed: PackedConv) -> str | None:
    if packed.base != "KernelIndexConv" or packed.groups != 1:
        return "lists are not whole kernels" if packed.groups == 1 else "grouped convolution"
    rows = np.bincount(packed.row_group)
    if len(set(rows.tolist())) != 1:
        return "filter groups of different sizes"
    return _too_much(packed.index.size, packed)


def _too_much(named: int, packed: PackedConv) -> str | None:
    if named > MAX_GATHER * packed.weight_shape[1]:
        return f"its lists name {named} channels, more than {MAX_GATHER} times the input's"
    return None


def _build(context: LoweringContext) -> Built:
    return _grouped(context, context.packed)


def _grouped(context: LoweringContext, packed: PackedConv) -> Built:
    """One grouped convolution over packed lists that all have the same length and number of filters."""
    _, _, rows, columns = packed.weight_shape
    lists = packed.index
    weight = packed.weight.reshape(-1, rows * columns, lists.shape[1]).transpose(0, 2, 1)
    bias = np.append(context.bias, context.bias.dtype.type(0))[packed.filters]
    kernel = np.ascontiguousarray(weight).reshape(-1, lists.shape[1], rows, columns)
    return context.conv(_gathered(context, lists), kernel, bias, groups=len(lists)), packed.filters


def _gathered(context: LoweringContext, lists: npt.NDArray[Any]) -> ir.Value:
    """The listed channels of the input. Padding entries have weights of zero, so they may read any channel: here 0."""
    channels = context.packed.weight_shape[1]
    sources = np.where(lists < channels, lists, 0).ravel().astype(np.int64)
    return context.x if np.array_equal(sources, np.arange(channels)) else context.gather(context.x, sources)


def _work(packed: PackedConv) -> Work:
    groups, length = packed.index.shape
    return _grouped_work(groups, len(packed.row_group) // groups, length, packed)


def _grouped_work(groups: int, filters: int, length: int, packed: PackedConv) -> Work:
    channels = packed.weight_shape[1]
    # Ragged groups leave the fast kernels of both backends; 0.25 is an assumption that keeps them from looking good.
    ragged = groups > 1 and (length % 8 or filters % 8)
    return Work(
        macs=groups * filters * length / (packed.weight_shape[0] * channels),
        reads=1 + 2 * groups * length / channels,  # the Gather reads x, then its copy is written and read
        kernels=2,
        efficiency=0.25 if ragged else filter_rate(filters) if groups > 1 else 1.0,
    )


def _padded(count: int, multiple: int) -> int:
    return max(1, -(-count // multiple)) * multiple


def _equal(packed: PackedConv, groups: int) -> Grouping:
    return equal_groups(kept_kernels(packed), groups)


def _equal_shape(packed: PackedConv, grouping: Grouping) -> tuple[int, int, int]:
    """Number of groups, and filters and channels of each, padding included."""
    multiple = FILTER_MULTIPLE if len(grouping.filters) > 1 else 1
    filters = _padded(max(len(group) for group in grouping.filters), multiple)
    longest = max(len(channels) for channels in grouping.lists)
    return len(grouping.filters), filters, _padded(longest, list_multiple(packed.weight.dtype))


def _equal_applies(packed: PackedConv, groups: int) -> str | None:
    if packed.groups != 1:
        return "grouped convolution"
    if groups > 1 and packed.weight_shape[0] < groups * FILTER_MULTIPLE:
        return f"fewer than {FILTER_MULTIPLE} filters a group"
    count, filters, length = _equal_shape(packed, _equal(packed, groups))
    if count != groups:
        return f"{packed.weight_shape[0]} filters do not fill {groups} groups"
    kernels = count * filters * length
    # More groups mean smaller convolutions, which are slower: they must at least compute fewer kernels.
    if groups > 1 and kernels >= prod(_equal_shape(packed, _equal(packed, groups // 2))):
        return f"no fewer kernels than gather-{groups // 2}"
    return _few_enough(kernels, packed) or _too_much(count * length, packed)


def _few_enough(kernels: int, packed: PackedConv) -> str | None:
    share = kernels / (packed.weight_shape[0] * packed.weight_shape[1])
    return f"its groups' lists join to {share:.0%} of the kernels" if share > _MOST_KERNELS else None


def _build_equal(context: LoweringContext, groups: int) -> Built:
    packed = context.packed
    grouping = _equal(packed, groups)
    _, filters, length = _equal_shape(packed, grouping)
    return _grouped(context, regroup(packed, grouping, filter_multiple=filters, list_multiple=length))


def _equal_work(packed: PackedConv, groups: int) -> Work:
    return _grouped_work(*_equal_shape(packed, _equal(packed, groups)), packed)


def _split(packed: PackedConv) -> Grouping:
    multiple = list_multiple(packed.weight.dtype)

    def cost(filters: int, channels: int) -> float:
        kernels = _padded(filters, FILTER_MULTIPLE) * _padded(channels, multiple)
        # A gathered channel is written and read back. 16 filters' worth of arithmetic per channel is an assumption.
        return kernels / filter_rate(filters) + 16 * _padded(channels, multiple) + _SPLIT_COST * multiple

    return cheapest_groups(kept_kernels(packed), cost, MAX_SPLIT)


def _split_applies(packed: PackedConv) -> str | None:
    if packed.groups != 1:
        return "grouped convolution"
    grouping = _split(packed)
    if len(grouping.filters) == 1:
        return "one convolution is cheapest"
    return _few_enough(grouping.kernels, packed) or _too_much(sum(map(len, grouping.lists)), packed)


def _build_split(context: LoweringContext) -> Built:
    packed = context.packed
    grouping = _split(packed)
    multiple = list_multiple(packed.weight.dtype)
    parts = []
    unpacked = regroup(packed, grouping, filter_multiple=1, list_multiple=1)
    for group, (filters, channels) in enumerate(zip(grouping.filters, grouping.lists, strict=True)):
        own = unpacked.row_group == group
        _, _, rows, columns = packed.weight_shape
        weight = (
            unpacked.weight[own].reshape(len(filters), rows * columns, -1)[:, :, : len(channels)].transpose(0, 2, 1)
        )
        kernel = np.zeros((len(filters), _padded(len(channels), multiple), rows * columns), weight.dtype)
        kernel[:, : len(channels)] = weight
        listed = np.zeros(kernel.shape[1], np.int64)
        listed[: len(channels)] = channels
        parts.append(
            context.conv(
                _gathered(context, listed), kernel.reshape(*kernel.shape[:2], rows, columns), context.bias[filters]
            )
        )
    return context.emit("Concat", *parts, axis=1), np.concatenate(grouping.filters)


def _split_work(packed: PackedConv) -> Work:
    grouping = _split(packed)
    multiple = list_multiple(packed.weight.dtype)
    filters, channels = packed.weight_shape[:2]
    sizes = [
        (len(own), _padded(len(read), multiple)) for own, read in zip(grouping.filters, grouping.lists, strict=True)
    ]
    dense = filters * channels
    macs = sum(own * read for own, read in sizes) / dense
    slowed = sum(own * read / filter_rate(own) for own, read in sizes) / dense
    return Work(
        macs=macs,
        reads=1 + 2 * sum(read for _, read in sizes) / channels,
        writes=3.0,  # the parts are written, then read and written once more by Concat
        kernels=2 * len(sizes) + 1,
        efficiency=macs / slowed,
    )


GATHER = Lowering(
    "gather", "whole kernels: Gather of the listed channels, then a grouped Conv", _applies, _build, _work
)
REGROUPED = tuple(
    Lowering(
        f"gather-{groups}", f"filters regrouped into {groups}: Gather of each group's union, then a grouped Conv",
        partial(_equal_applies, groups=groups), partial(_build_equal, groups=groups),
        partial(_equal_work, groups=groups),
    )
    for groups in EQUAL_GROUPS
)  # fmt: skip
SPLIT = Lowering(
    "split", "filters regrouped into groups of any size: a Gather and a Conv for each, then Concat",
    _split_applies, _build_split, _split_work,
)  # fmt: skip

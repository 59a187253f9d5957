"""Whole kernels: Gather of the channels that are read, then convolutions that read nothing else.

``gather`` computes the filter groups that there are, in one grouped convolution. ``gather-N`` regroups the filters into
N groups of one size (`lowerings.regroup`); ``gather-1`` is a dense convolution of the channels that any filter reads.
``split`` regroups into groups of any size and gives each a convolution of its own, joined by Concat: no list is padded
to the longest. Lists of other kinds count as the channels that they read at any tap.
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

#: A gather that writes more than this many times the input's channels costs more memory than it saves.
MAX_GATHER = 4
#: Numbers of groups that are tried.
EQUAL_GROUPS = (1, 2, 4, 8, 16, 32)
#: More groups than this are never worth a convolution each.
MAX_SPLIT = 16
#: What one convolution more costs, in kernels at full rate: 20 µs at the rate of a 3x3 kernel at 14x14, batch 8.
_SPLIT_COST = 64
#: A regrouped layer that computes more than this share of the dense kernels is not worth a Gather.
_MOST_KERNELS = 0.95


def list_multiple(dtype: npt.DTypeLike) -> int:
    """Channels of a group are padded to this multiple.

    In half precision it is 8, as tensor cores take them; in fp32 the floats of one of this CPU's vectors, the block of
    ONNX Runtime's NCHWc layout: a grouped convolution of other counts leaves that layout and its fast kernels.
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
        return f"its lists name {named} channels, worth it up to {MAX_GATHER} times the input's"
    return None


def _build(context: LoweringContext) -> Built:
    return _grouped(context, context.packed)


def _grouped(context: LoweringContext, packed: PackedConv) -> Built:
    """One grouped convolution of the packed lists, all of one length and for as many filters."""
    _, _, rows, columns = packed.weight_shape
    lists = packed.index
    weight = packed.weight.reshape(-1, rows * columns, lists.shape[1]).transpose(0, 2, 1)
    bias = np.append(context.bias, context.bias.dtype.type(0))[packed.filters]
    kernel = np.ascontiguousarray(weight).reshape(-1, lists.shape[1], rows, columns)
    return context.conv(_gathered(context, lists), kernel, bias, groups=len(lists)), packed.filters


def _gathered(context: LoweringContext, lists: npt.NDArray[Any]) -> ir.Value:
    """The listed channels; padding entries, whose weights are zero, read channel 0."""
    channels = context.packed.weight_shape[1]
    sources = np.where(lists < channels, lists, 0).ravel().astype(np.int64)
    return context.x if np.array_equal(sources, np.arange(channels)) else context.gather(context.x, sources)


def _work(packed: PackedConv) -> Work:
    groups, length = packed.index.shape
    return _grouped_work(groups, len(packed.row_group) // groups, length, packed)


def _grouped_work(groups: int, filters: int, length: int, packed: PackedConv) -> Work:
    channels = packed.weight_shape[1]
    # tensor cores take channels in eights; grouped convolutions below that crawl
    ragged = groups > 1 and (length % 8 or filters % 8)
    return Work(
        macs=groups * filters * length / (packed.weight_shape[0] * channels),
        reads=1 + 2 * groups * length / channels,
        kernels=2,
        efficiency=0.25 if ragged else filter_rate(filters) if groups > 1 else 1.0,
    )


def _padded(count: int, multiple: int) -> int:
    return max(1, -(-count // multiple)) * multiple


def _equal(packed: PackedConv, groups: int) -> Grouping:
    return equal_groups(kept_kernels(packed), groups)


def _equal_shape(packed: PackedConv, grouping: Grouping) -> tuple[int, int, int]:
    """Number of groups, filters and channels of each, padding included."""
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
        # a gathered channel is written and read back, which costs as much as some filters
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
        writes=3.0,
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

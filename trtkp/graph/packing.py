"""Packing: from a weight and its index set to the arrays that an operator of domain ``trtkp`` takes, and back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trtkp.index.index_set import QUAD, IndexSet, Kind

__all__ = ["BASE_OF_KIND", "ENTRY_RADIX", "PackedConv", "pack", "pack_for_tiles", "unpack"]

#: A PatternConv entry is ``tap * ENTRY_RADIX + channel``. Channels are 16-bit in index sets.
ENTRY_RADIX = 1 << 16

#: Channels that a tensor-core kernel loads at once: 8 of 16 bits are one 16-byte copy.
_BLOCK = 8

#: The operator that takes index sets of a kind.
BASE_OF_KIND = {Kind.KERNEL: "KernelIndexConv", Kind.STRIPE: "StripeConv", Kind.PATTERN: "PatternConv"}


@dataclass(frozen=True, eq=False)
class PackedConv:
    """A packed convolution.

    Attributes:
        base: the operator, one of `trtkp.graph.ops.BASES`.
        weight_shape: (F, C, R, S) of the dense weight; C counts the channels of one ONNX group.
        groups: number of ONNX groups.
        weight: packed weights, [rows, K].
        index: the lists, int32; `trtkp.graph.ops` gives their shape.
        row_group: filter group of each row, int32 [rows].
        filters: filter of each row, int32 [rows]; F marks a padding row.
        two_four: whether at most two of every four columns of a row are not 0. ``weight`` has all columns all the same.
    """

    base: str
    weight_shape: tuple[int, int, int, int]
    groups: int
    weight: npt.NDArray[Any]
    index: npt.NDArray[np.int32]
    row_group: npt.NDArray[np.int32]
    filters: npt.NDArray[np.int32]
    two_four: bool = False

    @property
    def list_block(self) -> int:
        """8 if all lists consist of blocks that tensor-core kernels can load, else 1.

        A block is eight consecutive channels of one tap that start at a multiple of 8. Padding entries stand for
        channels past C. The kernels know it as ``listBlock`` (`plugins/capi/trtkp.h`).
        """
        _, channels, rows, columns = self.weight_shape
        if self.base == "StripeConv":
            return _BLOCK if channels % _BLOCK == 0 else 1
        if self.index.shape[1] % _BLOCK:
            return 1
        padding = channels if self.base == "KernelIndexConv" else rows * columns * ENTRY_RADIX
        blocks, place = self.index.reshape(-1, _BLOCK), np.arange(_BLOCK)
        first = blocks[:, :1]
        is_padding = first == padding
        past = is_padding | (first % ENTRY_RADIX + place >= channels)
        whole = (blocks == np.where(past, padding, first + place)).all()
        aligned = (is_padding | (first % ENTRY_RADIX % _BLOCK == 0)).all()
        return _BLOCK if whole and aligned else 1

    def columns(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Tap and channel of every packed column, int64 [G, K] each. Tap R·S or channel C marks padding."""
        return _columns(self.base, self.index, self.weight_shape)


def pack(weight: npt.NDArray[Any], index: IndexSet, *, row_multiple: int = 1, list_multiple: int = 1) -> PackedConv:
    """Pack a weight: gather what the lists hold, row by row in group order.

    Lists that are shorter than the longest are padded with entries that address nothing, with weights of zero. With a
    2:4 refinement the channels of every tap are padded to whole quads, in the order of the entries.

    Args:
        weight: the layer's weight, [F, C, R, S]. Values outside the lists are dropped.
        index: its index set.
        row_multiple: multiple to which the filters of every group are padded.
        list_multiple: multiple to which the lists (of channels, taps or entries) are padded.

    Example:
        >>> from trtkp.index.index_set import from_mask
        >>> weight = np.arange(8, dtype=np.float32).reshape(2, 4, 1, 1)
        >>> packed = pack(weight, from_mask(np.isin(weight, [1, 3, 5, 7])))  # both filters keep channels 1 and 3
        >>> packed.base, packed.index.tolist(), packed.weight.tolist()
        ('KernelIndexConv', [[1, 3]], [[1.0, 3.0], [5.0, 7.0]])
        >>> unpack(packed)[0].ravel().tolist()
        [0.0, 1.0, 0.0, 3.0]
    """
    filters, channels, kernel_rows, kernel_columns = index.shape
    taps = kernel_rows * kernel_columns
    base = _base(index)
    if index.nm_mask is not None:
        list_multiple = list_multiple if base == "StripeConv" else math.lcm(list_multiple, QUAD)
    if base == "KernelIndexConv":
        lists, padding = _ragged(index.channel, index.entry_ptr), channels
    elif base == "StripeConv":
        lists, padding = [_set_bits(bitmask) for bitmask in index.group_taps[:, 0]], taps
    else:
        padding = taps * ENTRY_RADIX
        lists = _tap_major(index) if index.nm_mask is None else _tap_major_quads(index, padding, list_multiple)
    table = _padded(lists, padding, list_multiple)

    sizes = np.diff(index.group_ptr)
    padded_sizes = -(-sizes // row_multiple) * row_multiple
    row_group = np.repeat(np.arange(len(sizes), dtype=np.int32), padded_sizes)
    row_filters = np.full(len(row_group), filters, np.int32)
    # Padding rows come last in their group; the kernels rely on it.
    within = np.concatenate([np.arange(size) for size in sizes])
    row_filters[np.repeat(np.cumsum(padded_sizes) - padded_sizes, sizes) + within] = index.filters

    tap, channel = _columns(base, table, index.shape)
    # One spare filter, tap and channel of zeros, which padding addresses.
    source = np.zeros((filters + 1, taps + 1, channels + 1), weight.dtype)
    if index.nm_mask is not None:
        weight = np.where(index.mask(), weight, weight.dtype.type(0))
    source[:filters, :taps, :channels] = weight.reshape(filters, channels, taps).transpose(0, 2, 1)
    flat = (tap * (channels + 1) + channel)[row_group]
    rows = np.take_along_axis(source.reshape(filters + 1, -1)[row_filters], flat, axis=1)
    two_four = index.nm_mask is not None
    return PackedConv(base, index.shape, index.groups, rows, table, row_group, row_filters, two_four)


def pack_for_tiles(weight: npt.NDArray[Any], index: IndexSet) -> PackedConv:
    """Pack for tensor cores: lists in whole blocks of 8, and the rows of a group in a multiple that wastes little.

    A tile of the kernels walks one list for every filter group among its rows, so groups that fill whole tiles save
    work. But padding rows are computed too: the largest multiple is taken that adds at most 13 % of rows.
    """
    sizes = np.diff(index.group_ptr)
    row_multiple = 1
    if len(sizes) > 1:
        row_multiple = next(m for m in (64, 32, 16, 8, 1) if (-(-sizes // m) * m).sum() <= 1.13 * sizes.sum())
    return pack(weight, index, row_multiple=row_multiple, list_multiple=1 if index.kind is Kind.STRIPE else 8)


def unpack(packed: PackedConv) -> npt.NDArray[Any]:
    """The dense masked weight [F, C, R, S] of a packed convolution, the inverse of `pack`. Uses NumPy alone."""
    filters, channels, rows, columns = packed.weight_shape
    tap, channel = packed.columns()
    grid = np.zeros((filters + 1, rows * columns + 1, channels + 1), packed.weight.dtype)
    grid[packed.filters[:, None], tap[packed.row_group], channel[packed.row_group]] = packed.weight
    dense = grid[:filters, : rows * columns, :channels].transpose(0, 2, 1)
    return np.ascontiguousarray(dense).reshape(packed.weight_shape)


def _columns(
    base: str, index: npt.NDArray[np.int32], weight_shape: tuple[int, int, int, int]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    _, channels, rows, columns = weight_shape
    wide: npt.NDArray[np.int64] = index.astype(np.int64)
    tap, channel = wide // ENTRY_RADIX, wide % ENTRY_RADIX
    if base == "KernelIndexConv":
        tap, channel = np.arange(rows * columns, dtype=np.int64)[None, :, None], wide[:, None, :]
    elif base == "StripeConv":
        tap, channel = wide[:, :, None], np.arange(channels, dtype=np.int64)[None, None, :]
    shape = np.broadcast_shapes(tap.shape, channel.shape)
    return np.broadcast_to(tap, shape).reshape(len(wide), -1), np.broadcast_to(channel, shape).reshape(len(wide), -1)


def _ragged(values: npt.NDArray[Any], pointer: npt.NDArray[np.int32]) -> list[npt.NDArray[Any]]:
    return np.split(values, pointer[1:-1])


def _set_bits(bitmask: np.uint64) -> npt.NDArray[np.int64]:
    return np.flatnonzero([(int(bitmask) >> t) & 1 for t in range(64)])


def _tap_major(index: IndexSet) -> list[npt.NDArray[np.int64]]:
    """Entries ``tap * ENTRY_RADIX + channel`` of every group, with the channels innermost."""
    taps = index.shape[2] * index.shape[3]
    kept = (index.group_taps[:, None, :] >> np.arange(taps, dtype=np.uint64)[:, None]) & np.uint64(1)
    group, tap, channel = np.nonzero(kept)
    return np.split(tap * ENTRY_RADIX + channel, np.cumsum(np.bincount(group, minlength=index.filter_groups))[:-1])


def _base(index: IndexSet) -> str:
    """The operator that takes an index set.

    A stripe with a 2:4 refinement stays a `StripeConv` only if its quads are whole and hold consecutive channels, as
    that operator has no list of channels that could say otherwise.
    """
    if index.nm_mask is not None and index.kind is Kind.STRIPE:
        ascending = index.channel == np.tile(np.arange(index.shape[1]), len(index.channel) // index.shape[1])
        return "StripeConv" if index.shape[1] % QUAD == 0 and ascending.all() else "PatternConv"
    return BASE_OF_KIND[index.kind]


def _tap_major_quads(index: IndexSet, padding: int, multiple: int) -> list[npt.NDArray[np.int64]]:
    """As `_tap_major`, for lists that are products, with the channels of each tap padded to ``multiple``.

    Channels keep the order of the entries, which defines the quads.
    """
    lists = []
    for _, taps, channels in index.products():
        entries = np.full((len(taps), -(-len(channels) // multiple) * multiple), padding, np.int64)
        entries[:, : len(channels)] = taps[:, None] * ENTRY_RADIX + channels
        lists.append(entries.ravel())
    return lists


def _padded(lists: list[npt.NDArray[Any]], padding: int, multiple: int) -> npt.NDArray[np.int32]:
    """The lists as rows of one table. It has at least one column, because no tensor of an engine may be empty."""
    longest = max(1, *(len(entries) for entries in lists))
    table = np.full((len(lists), -(-longest // multiple) * multiple), padding, np.int32)
    for row, entries in zip(table, lists, strict=True):
        row[: len(entries)] = entries
    return table

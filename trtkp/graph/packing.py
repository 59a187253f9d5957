"""Packed convolutions: the arrays that an operator of domain ``trtkp`` takes, made from a weight and its index set."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trtkp.index.index_set import QUAD, IndexSet, Kind

__all__ = ["BASE_OF_KIND", "ENTRY_RADIX", "PackedConv", "pack", "pack_for_tiles", "unpack"]

#: A PatternConv entry is ``tap * ENTRY_RADIX + channel``; channels are 16-bit.
ENTRY_RADIX = 1 << 16

_BLOCK = 8

#: The operator that takes index sets of a kind.
BASE_OF_KIND = {Kind.KERNEL: "KernelIndexConv", Kind.STRIPE: "StripeConv", Kind.PATTERN: "PatternConv"}


@dataclass(frozen=True, eq=False)
class PackedConv:
    """Weight, lists and row order of one packed convolution; `trtkp.graph.ops` gives the shapes.

    With ``two_four`` at most two of every four columns of a row are not 0; ``weight`` has all columns.
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
        """8 where every list comes in blocks that tensor cores take, else 1: ``listBlock`` of `plugins/capi/trtkp.h`.

        A block is eight consecutive channels of one tap, from a multiple of 8; padding stands for channels past C.
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
        """Tap and channel of every packed column, int64 [G, K] each; tap R·S or channel C marks padding."""
        return _columns(self.base, self.index, self.weight_shape)


def pack(weight: npt.NDArray[Any], index: IndexSet, *, row_multiple: int = 1, list_multiple: int = 1) -> PackedConv:
    """Gather the listed weights of ``weight`` [F, C, R, S], row by row in group order.

    Lists shorter than the longest are padded with entries that address nothing and weights of zero. With a 2:4
    refinement the channels of every tap are padded to whole quads, in the order of the entries.

    Args:
        weight: the layer's weight; values outside the lists are dropped.
        index: its index set.
        row_multiple: every group's filters are padded to this multiple.
        list_multiple: lists (channels, taps or entries) are padded to this multiple.
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
    within = np.concatenate([np.arange(size) for size in sizes])
    row_filters[np.repeat(np.cumsum(padded_sizes) - padded_sizes, sizes) + within] = index.filters

    tap, channel = _columns(base, table, index.shape)
    # one spare filter, tap and channel of zeros stand for padding
    source = np.zeros((filters + 1, taps + 1, channels + 1), weight.dtype)
    if index.nm_mask is not None:
        weight = np.where(index.mask(), weight, weight.dtype.type(0))
    source[:filters, :taps, :channels] = weight.reshape(filters, channels, taps).transpose(0, 2, 1)
    flat = (tap * (channels + 1) + channel)[row_group]
    rows = np.take_along_axis(source.reshape(filters + 1, -1)[row_filters], flat, axis=1)
    two_four = index.nm_mask is not None
    return PackedConv(base, index.shape, index.groups, rows, table, row_group, row_filters, two_four)


def pack_for_tiles(weight: npt.NDArray[Any], index: IndexSet) -> PackedConv:
    """Pack for tensor cores: lists in whole blocks of 8, and rows of a group in multiples that waste little."""
    sizes = np.diff(index.group_ptr)
    row_multiple = 1
    if len(sizes) > 1:
        row_multiple = next(m for m in (64, 32, 16, 8, 1) if (-(-sizes // m) * m).sum() <= 1.13 * sizes.sum())
    return pack(weight, index, row_multiple=row_multiple, list_multiple=1 if index.kind is Kind.STRIPE else 8)


def unpack(packed: PackedConv) -> npt.NDArray[Any]:
    """The dense masked weight [F, C, R, S], with NumPy alone: the check on the operator's body."""
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
    """Entries ``tap * ENTRY_RADIX + channel`` of every group, channels innermost."""
    taps = index.shape[2] * index.shape[3]
    kept = (index.group_taps[:, None, :] >> np.arange(taps, dtype=np.uint64)[:, None]) & np.uint64(1)
    group, tap, channel = np.nonzero(kept)
    return np.split(tap * ENTRY_RADIX + channel, np.cumsum(np.bincount(group, minlength=index.filter_groups))[:-1])


def _base(index: IndexSet) -> str:
    """The operator that takes an index set. Quads of a stripe are those of the channels in order, and all are whole."""
    if index.nm_mask is not None and index.kind is Kind.STRIPE:
        ascending = index.channel == np.tile(np.arange(index.shape[1]), len(index.channel) // index.shape[1])
        return "StripeConv" if index.shape[1] % QUAD == 0 and ascending.all() else "PatternConv"
    return BASE_OF_KIND[index.kind]


def _tap_major_quads(index: IndexSet, padding: int, multiple: int) -> list[npt.NDArray[np.int64]]:
    """As `_tap_major` for product lists: channels in the order of the entries, each tap's padded to ``multiple``."""
    lists = []
    for _, taps, channels in index.products():
        entries = np.full((len(taps), -(-len(channels) // multiple) * multiple), padding, np.int64)
        entries[:, : len(channels)] = taps[:, None] * ENTRY_RADIX + channels
        lists.append(entries.ravel())
    return lists


def _padded(lists: list[npt.NDArray[Any]], padding: int, multiple: int) -> npt.NDArray[np.int32]:
    """Lists as rows of one table; at least one column, as no tensor of an engine may be empty."""
    longest = max(1, *(len(entries) for entries in lists))
    table = np.full((len(lists), -(-longest // multiple) * multiple), padding, np.int32)
    for row, entries in zip(table, lists, strict=True):
        row[: len(entries)] = entries
    return table

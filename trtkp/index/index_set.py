"""The index set of a pruned convolution: which (channel, tap) pairs each group of filters keeps.

A mask of ``W[F, C, R, S]`` becomes

- a permutation of the filters,
- a partition of them into filter groups, and
- for each group, a sorted list of entries ``(channel, tap bitmask)``.

Bit t of the bitmask is the tap ``(r, s) = divmod(t, S)``. Channels count from the start of their ONNX group, and a
filter group never crosses an ONNX group. The conversion from a mask and back is exact. Everything is NumPy, because
PyTorch has no shifts on uint64.

A *2:4 refinement* (``nm_mask``) keeps a part of what the lists hold. Four consecutive entries of a list are a quad (the
last may be shorter), and at each tap every filter keeps at most two weights of each quad. The lists of a refinement are
products: they hold the same channels at every tap of the group. They may be in any order, as the order defines the
quads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property

import numpy as np
import numpy.typing as npt

from trtkp.errors import InputError

__all__ = ["MAX_TAPS", "QUAD", "IndexSet", "Kind", "Masks", "from_mask"]

#: Parameter name to mask, True where a weight is kept, shaped as the weight.
Masks = dict[str, npt.NDArray[np.bool_]]

#: Largest number of taps of a kernel, because a tap bitmask is a uint64: 8x8, or 1x64.
MAX_TAPS = 64
#: The 4 and the 2 of a 2:4 refinement: of `QUAD` entries it keeps at most `QUAD_KEPT`.
QUAD, QUAD_KEPT = 4, 2


class Kind(StrEnum):
    """The special cases that an index set can be. It is found by looking at the lists, not recorded in them."""

    KERNEL = "kernel"
    """Every entry keeps all taps: whole kernels are pruned."""
    STRIPE = "stripe"
    """Every group keeps all channels with one tap bitmask, or nothing: whole taps are pruned."""
    PATTERN = "pattern"
    """Anything else."""


@dataclass(frozen=True, eq=False)
class IndexSet:
    """The index lists of one convolution, for G filter groups with E entries in total.

    Attributes:
        shape: ``(F, C, R, S)`` of the weight; C is the number of channels of one ONNX group.
        groups: number of ONNX groups.
        filters: int32 [F], the filters, group by group.
        group_ptr: int32 [G+1], where each group begins in ``filters``.
        entry_ptr: int32 [G+1], where each group's list begins in ``channel`` and ``taps``.
        channel: uint16 [E], channel of every entry. Ascending within a list; in any order with ``nm_mask``.
        taps: uint64 [E], tap bitmask of every entry, never 0.
        nm_mask: uint8, one bit for every weight that the lists hold, set if a 2:4 refinement keeps it. Bits are packed
            lowest first, group by group, each group as [its filters, its taps, its entries]. None without a refinement.
    """

    shape: tuple[int, int, int, int]
    groups: int
    filters: npt.NDArray[np.int32]
    group_ptr: npt.NDArray[np.int32]
    entry_ptr: npt.NDArray[np.int32]
    channel: npt.NDArray[np.uint16]
    taps: npt.NDArray[np.uint64]
    nm_mask: npt.NDArray[np.uint8] | None = None

    @property
    def filter_groups(self) -> int:
        """G."""
        return len(self.group_ptr) - 1

    @cached_property
    def group_of_filter(self) -> npt.NDArray[np.int64]:
        """The filter group of every filter, int64 [F]."""
        owner = np.empty(self.shape[0], np.int64)
        owner[self.filters] = np.repeat(np.arange(self.filter_groups), np.diff(self.group_ptr))
        return owner

    @cached_property
    def group_taps(self) -> npt.NDArray[np.uint64]:
        """Tap bitmask of every channel in every group, uint64 [G, C]; 0 where the group does not list the channel."""
        dense = np.zeros((self.filter_groups, self.shape[1]), np.uint64)
        owner = np.repeat(np.arange(self.filter_groups), np.diff(self.entry_ptr))  # the filter group of every entry
        dense[owner, self.channel] = self.taps
        return dense

    @cached_property
    def kind(self) -> Kind:
        """The most special `Kind` that the lists have."""
        if bool(np.all(self.taps == _full(self.shape))):
            return Kind.KERNEL
        lengths = np.diff(self.entry_ptr)
        all_channels = np.all((lengths == 0) | (lengths == self.shape[1]))
        return Kind.STRIPE if bool(all_channels) and _are_products(self) else Kind.PATTERN

    @cached_property
    def retained(self) -> int:
        """Number of weights kept."""
        if self.nm_mask is not None:
            return int(np.bitwise_count(self.nm_mask).sum())
        return self.listed

    @cached_property
    def listed(self) -> int:
        """Number of weights that the lists hold. Without a refinement it equals `retained`."""
        # Every filter of a group keeps all entries of its list.
        readers = np.repeat(np.diff(self.group_ptr), np.diff(self.entry_ptr))
        return int(np.bitwise_count(self.taps).astype(np.int64) @ readers)

    @property
    def density(self) -> float:
        """Share of the weights kept."""
        return self.retained / int(np.prod(self.shape))

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, in memory and on disk."""
        arrays = (self.filters, self.group_ptr, self.entry_ptr, self.channel, self.taps, self.nm_mask)
        return sum(a.nbytes for a in arrays if a is not None)

    def mask(self) -> npt.NDArray[np.bool_]:
        """The mask, bool [F, C, R, S]."""
        if self.nm_mask is None:
            return self.list_mask()
        kept = np.unpackbits(self.nm_mask, count=self.listed, bitorder="little").astype(bool)
        mask = np.zeros((*self.shape[:2], self.shape[2] * self.shape[3]), bool)
        at = 0
        for filters, taps, channels in self.products():
            size = (len(filters), len(taps), len(channels))
            block = kept[at : at + int(np.prod(size))].reshape(size)
            mask[np.ix_(filters, channels, taps)] = block.transpose(0, 2, 1)
            at += block.size
        return mask.reshape(self.shape)

    def list_mask(self) -> npt.NDArray[np.bool_]:
        """The mask of the lists, bool [F, C, R, S]. Without a refinement it equals `mask`."""
        bits = np.arange(self.shape[2] * self.shape[3], dtype=np.uint64)
        per_group = (self.group_taps[:, :, None] >> bits) & np.uint64(1)
        return per_group.astype(bool)[self.group_of_filter].reshape(self.shape)

    def refined(self, mask: npt.NDArray[np.bool_]) -> IndexSet:
        """The same lists with a 2:4 refinement that keeps ``mask``, bool [F, C, R, S].

        Raises:
            InputError: the lists are not products, or the mask keeps a weight that no list holds, or more than two
                weights of a quad.
        """
        if np.any(mask & ~self.list_mask()):
            raise InputError("2:4 refinement: it keeps weights that no list holds")
        flat = mask.reshape(*self.shape[:2], -1).transpose(0, 2, 1)
        bits = [flat[np.ix_(filters, taps, channels)].ravel() for filters, taps, channels in self.products()]
        index = replace(self, nm_mask=np.packbits(np.concatenate([np.zeros(0, bool), *bits]), bitorder="little"))
        for problem in _nm_problems(index):
            raise InputError(f"2:4 refinement: {problem}")
        return index

    def products(self) -> Iterator[tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.uint16]]]:
        """Filters, taps and channels of every group, for lists that are products. Channels are in the order of entries.

        Raises:
            InputError: a list holds different channels at different taps.
        """
        if not _are_products(self):
            raise InputError(
                "2:4 refinement: the lists are not the same channels at every tap",
                remedy="prune whole kernels or stripes, e.g. with --method vskp",
            )
        for g in range(self.filter_groups):
            filters = self.filters[self.group_ptr[g] : self.group_ptr[g + 1]]
            entries = slice(self.entry_ptr[g], self.entry_ptr[g + 1])
            bitmask = int(self.taps[entries][0]) if entries.stop > entries.start else 0
            taps = np.array([t for t in range(MAX_TAPS) if bitmask >> t & 1], np.int64)
            yield filters, taps, self.channel[entries]

    def validate(self, layer: str) -> None:
        """Check the arrays against every rule of the format.

        Raises:
            InputError: names the layer and the first rule that is broken.
        """
        for problem in _problems(self):
            raise InputError(f"invalid index set: {problem}", layer=layer, remedy="write it again from the mask")


def from_mask(
    mask: npt.NDArray[np.bool_], groups: int = 1, partition: Sequence[Sequence[int]] | None = None
) -> IndexSet:
    """The index set of a mask.

    Without a ``partition``, filters with the same list share a group, and groups are in the order of their first
    filter. So the masks of V-SKP usually give one group per filter, and a mask that all filters share gives one group.

    Args:
        mask: bool [F, C, R, S], True where a weight is kept.
        groups: number of ONNX groups of the convolution.
        partition: filter groups to use instead. The filters of a group must have equal masks.

    Raises:
        InputError: more than 64 taps, more than 65536 channels, or a partition that does not fit the mask.

    Example:
        >>> mask = np.zeros((2, 4, 3, 3), bool)
        >>> mask[:, [1, 3]] = True  # both filters keep the whole kernels of channels 1 and 3
        >>> index = from_mask(mask)
        >>> index.kind, index.filter_groups, index.channel.tolist(), index.density
        (<Kind.KERNEL: 'kernel'>, 1, [1, 3], 0.5)
        >>> bool((index.mask() == mask).all())
        True
    """
    filters, channels, rows, columns = mask.shape
    if groups < 1 or filters % groups:
        raise InputError(f"{filters} filters in {groups} ONNX groups")
    if rows * columns > MAX_TAPS:
        raise InputError(f"a {rows}x{columns} kernel has {rows * columns} taps, an index set holds at most {MAX_TAPS}")
    if channels > 1 << 16:
        raise InputError(f"{channels} channels, an index set holds at most {1 << 16}")
    bits = np.left_shift(np.uint64(1), np.arange(rows * columns, dtype=np.uint64))
    # [F, C]. NumPy has no fast dot product for uint64, so taps are added one by one.
    taps = np.zeros((filters, channels), np.uint64)
    for t, bit in enumerate(bits):
        taps |= np.where(mask[:, :, t // columns, t % columns], bit, np.uint64(0))
    if partition is None:
        lists = _equal_lists(taps, groups)
    else:
        lists = [np.asarray(members, np.int32) for members in partition]
        if not all(map(len, lists)) or sorted(np.concatenate([[], *lists])) != list(range(filters)):
            raise InputError(f"partition of the filters: it does not name each of 0..{filters - 1} once")
    heads = np.array([members[0] for members in lists], np.int64)
    group_taps = taps[heads]
    owner, channel = np.nonzero(group_taps)
    index = IndexSet(
        shape=(filters, channels, rows, columns),
        groups=groups,
        filters=np.concatenate(lists).astype(np.int32),
        group_ptr=_pointers([len(members) for members in lists]),
        entry_ptr=_pointers(np.bincount(owner, minlength=len(lists))),
        channel=channel.astype(np.uint16),
        taps=group_taps[owner, channel],
    )
    if partition is not None:
        problem = next(_problems(index), None)
        if problem is None and not np.array_equal(index.group_taps[index.group_of_filter], taps):
            problem = "the filters of a group have different masks"
        if problem is not None:
            raise InputError(f"partition of the filters: {problem}")
    return index


def _equal_lists(taps: npt.NDArray[np.uint64], groups: int) -> list[npt.NDArray[np.int32]]:
    """Groups of filters with equal lists within one ONNX group, in the order of their first filter."""
    filters = len(taps)
    onnx_group = np.arange(filters, dtype=np.uint64) * np.uint64(groups) // np.uint64(filters)
    rows = np.ascontiguousarray(np.column_stack([onnx_group, taps]))
    # Rows as opaque bytes, which np.unique sorts as scalars.
    keys = rows.view([("", np.void, rows.itemsize * rows.shape[1])]).ravel()
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    order = np.argsort(rank[inverse], kind="stable").astype(np.int32)
    return np.split(order, np.cumsum(np.bincount(rank[inverse]))[:-1])


def _pointers(lengths: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def _full(shape: tuple[int, int, int, int]) -> np.uint64:
    return np.uint64((1 << (shape[2] * shape[3])) - 1)


def _problems(index: IndexSet) -> Iterator[str]:
    """Every broken rule as a phrase, the most basic first. It stops where later checks could not even be computed."""
    filters, channels, rows, columns = index.shape
    dtypes = {
        "filters": np.int32,
        "group_ptr": np.int32,
        "entry_ptr": np.int32,
        "channel": np.uint16,
        "taps": np.uint64,
    }
    for name, dtype in dtypes.items():
        array = getattr(index, name)
        if array.dtype != dtype or array.ndim != 1:
            yield f"{name} is {array.dtype}[{array.ndim}-d], expected {np.dtype(dtype)}[1-d]"
            return
    if min(index.shape) < 1 or rows * columns > MAX_TAPS or channels > 1 << 16:
        yield f"weight shape {index.shape} has an empty dimension, or too many taps or channels"
        return
    if index.groups < 1 or filters % index.groups:
        yield f"{filters} filters in {index.groups} ONNX groups"
        return
    if len(index.group_ptr) < 2 or len(index.group_ptr) != len(index.entry_ptr):
        yield f"group_ptr has {len(index.group_ptr)} values, entry_ptr {len(index.entry_ptr)}"
        return
    for name, end, least in (("group_ptr", len(index.filters), 1), ("entry_ptr", len(index.channel), 0)):
        pointer = getattr(index, name).astype(np.int64)
        if pointer[0] != 0 or pointer[-1] != end or np.any(np.diff(pointer) < least):
            yield f"{name} does not run from 0 to {end} in steps of at least {least}"
            return
    if len(index.taps) != len(index.channel):
        yield f"{len(index.channel)} channels, {len(index.taps)} tap bitmasks"
        return
    if len(index.filters) != filters or not np.array_equal(np.sort(index.filters), np.arange(filters)):
        yield f"filters is not a permutation of 0..{filters - 1}"
        return
    per_group = filters // index.groups
    owner = index.filters // per_group
    heads = index.group_ptr[:-1]
    if not np.array_equal(np.repeat(owner[heads], np.diff(index.group_ptr)), owner):
        yield "a filter group crosses an ONNX group"
    if np.any(index.channel >= channels):
        yield f"channel {int(index.channel.max())}, the weight has {channels}"
    rising = np.diff(index.channel.astype(np.int64)) > 0
    begins = np.zeros(len(index.channel) + 1, bool)
    begins[index.entry_ptr] = True
    if index.nm_mask is None and not np.all(rising | begins[1:-1]):
        yield "channels of a list are not ascending and unique"
    if np.any(index.taps == 0):
        yield "an entry without taps"
    if np.any(index.taps > _full(index.shape)):
        yield f"a tap beyond the {rows}x{columns} kernel"
    if index.nm_mask is not None:
        yield from _nm_problems(index)


def _are_products(index: IndexSet) -> bool:
    """Whether every list has one tap bitmask."""
    lengths = np.diff(index.entry_ptr)
    firsts = index.taps[index.entry_ptr[:-1][lengths > 0]]
    return bool(np.all(index.taps == np.repeat(firsts, lengths[lengths > 0])))


def _nm_problems(index: IndexSet) -> Iterator[str]:
    """The broken rules of a 2:4 refinement, for lists that are well-formed except for their order."""
    bits = index.nm_mask
    assert bits is not None
    if bits.dtype != np.uint8 or bits.ndim != 1:
        yield f"nm_mask is {bits.dtype}[{bits.ndim}-d], expected uint8[1-d]"
        return
    owner = np.repeat(np.arange(index.filter_groups, dtype=np.int64), np.diff(index.entry_ptr))
    if len(np.unique(owner << 16 | index.channel.astype(np.int64))) != len(owner):
        yield "channels of a list are not unique"
        return
    if not _are_products(index):
        yield "nm_mask, but the lists are not the same channels at every tap"
        return
    if len(bits) != -(-index.listed // 8):
        yield f"nm_mask has {len(bits)} bytes for {index.listed} weights"
        return
    kept = np.unpackbits(bits, bitorder="little")
    if kept[index.listed :].any():
        yield "nm_mask has a bit beyond its last weight"
        return
    at = 0
    for filters, taps, channels in index.products():
        rows, length = len(filters) * len(taps), len(channels)
        quads = np.zeros((rows, -(-length // QUAD) * QUAD), np.uint8)
        quads[:, :length] = kept[at : at + rows * length].reshape(rows, length)
        at += rows * length
        if quads.reshape(rows, -(-length // QUAD), QUAD).sum(axis=2).max(initial=0) > QUAD_KEPT:
            yield f"filter {int(filters[0])} or one of its group keeps more than {QUAD_KEPT} of a quad"
            return

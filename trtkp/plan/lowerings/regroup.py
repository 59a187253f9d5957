"""Regroup: cluster the filters of a layer so that filters which read the same channels compute together.

Lists of a layer, one for each filter in the papers, are merged bottom-up. Merging groups i and j of n_i and n_j filters
with lists B_i and B_j adds

    (n_i + n_j) · |B_i ∪ B_j| - n_i · |B_i| - n_j · |B_j|

kernels of zeros. In rounds, every group finds its nearest neighbour and the cheaper half of the groups merges with its
own: a few matrix products over the lists, with memory linear in them. The tree gives an order of the filters; groups of
one size are cut from the order, groups of any size from the tree, where a cost is least. A group's list is the union of
its filters' lists: the result computes the same, with weights of zero where a filter did not keep what its group reads.

The index sets of a bundle hold the method's masks and never these groups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from trtkp.graph.packing import PackedConv, pack, unpack
from trtkp.index.index_set import from_mask

__all__ = ["FILTER_MULTIPLE", "Grouping", "cheapest_groups", "equal_groups", "kept_kernels", "regroup"]

Bits = npt.NDArray[np.bool_]

#: Filters of a group of one size are padded to this multiple: the block of ONNX Runtime's convolution on AVX2 and of a
#: tensor core's tile.
FILTER_MULTIPLE = 8

#: Lists that are held against all others at a time, to bound memory.
_BLOCK = 256


@dataclass(frozen=True, eq=False)
class Grouping:
    """Filter groups, in the order of their first filter: the filters of each, ascending, and the channels it reads."""

    filters: tuple[npt.NDArray[np.int64], ...]
    lists: tuple[npt.NDArray[np.int64], ...]

    @classmethod
    def of(cls, groups: list[npt.NDArray[np.int64]], kept: Bits) -> Grouping:
        """The groups of filters with the unions of their lists; ``kept`` is [F, C]."""
        ordered = sorted((np.sort(group) for group in groups if len(group)), key=lambda group: int(group[0]))
        return cls(tuple(ordered), tuple(np.flatnonzero(kept[group].any(axis=0)) for group in ordered))

    @property
    def kernels(self) -> int:
        """Kernels that are computed, zeros of the unions included."""
        return sum(len(filters) * len(channels) for filters, channels in zip(self.filters, self.lists, strict=True))


@lru_cache(maxsize=1)
def kept_kernels(packed: PackedConv) -> Bits:
    """Which channels every filter reads at any tap, bool [F, C], read-only; kept, as every form of a layer asks."""
    filters, channels, rows, columns = packed.weight_shape
    tap, channel = packed.columns()
    listed = np.zeros((len(packed.index), channels + 1), bool)
    group, column = np.nonzero((tap < rows * columns) & (channel < channels))
    listed[group, channel[group, column]] = True
    kept = np.zeros((filters + 1, channels), bool)
    kept[packed.filters] = listed[packed.row_group, :channels]
    kept.setflags(write=False)
    return kept[:filters]


def regroup(packed: PackedConv, grouping: Grouping, *, filter_multiple: int, list_multiple: int) -> PackedConv:
    """The same convolution with these filter groups, as whole kernels (``KernelIndexConv``)."""
    kept = np.zeros(packed.weight_shape, bool)
    for filters, channels in zip(grouping.filters, grouping.lists, strict=True):
        kept[np.ix_(filters, channels)] = True
    index = from_mask(kept, partition=[filters.tolist() for filters in grouping.filters])
    return pack(unpack(packed), index, row_multiple=filter_multiple, list_multiple=list_multiple)


def equal_groups(kept: Bits, groups: int) -> Grouping:
    """Groups of one size (the last one smaller where F does not divide), cut from the tree's order."""
    size = -(-len(kept) // groups)
    order = _tree_of(kept).order()
    return Grouping.of([order[begin : begin + size] for begin in range(0, len(order), size)], kept)


def cheapest_groups(kept: Bits, cost: Callable[[int, int], float], most: int) -> Grouping:
    """Groups of any size, at most ``most``, where the sum of ``cost(filters, channels)`` over them is least."""
    return Grouping.of(_tree_of(kept).cheapest(cost, most), kept)


@dataclass(frozen=True, eq=False)
class _Tree:
    """Distinct lists, the filters that have each, and the merges from first to last: (kept, gone, |union|)."""

    members: tuple[npt.NDArray[np.int64], ...]
    lengths: npt.NDArray[np.int64]
    merges: tuple[tuple[int, int, int], ...]

    def order(self) -> npt.NDArray[np.int64]:
        """All filters, those merged early side by side, and earlier filters first otherwise."""
        (group,) = self._merged(len(self.merges))
        return group

    def cheapest(self, cost: Callable[[int, int], float], most: int) -> list[npt.NDArray[np.int64]]:
        """The cut through the tree with the lowest sum of costs."""
        filters = [len(group) for group in self.members]
        costs = [cost(n, int(length)) for n, length in zip(filters, self.lengths, strict=True)]
        total, best, at = sum(costs), float("inf"), 0
        for done in range(len(self.merges) + 1):
            if len(self.members) - done <= most and total < best:
                best, at = total, done
            if done < len(self.merges):
                kept, gone, union = self.merges[done]
                total -= costs[kept] + costs[gone]
                filters[kept] += filters[gone]
                costs[kept] = cost(filters[kept], union)
                total += costs[kept]
        return self._merged(at)

    def _merged(self, count: int) -> list[npt.NDArray[np.int64]]:
        """The groups after so many merges."""
        groups: list[list[npt.NDArray[np.int64]]] = [[group] for group in self.members]
        for kept, gone, _ in self.merges[:count]:
            groups[kept] += groups[gone]
            groups[gone] = []
        return [np.concatenate(group) for group in groups if group]


def _tree_of(kept: Bits) -> _Tree:
    return _tree(np.packbits(kept, axis=1).tobytes(), len(kept))


@lru_cache(maxsize=64)
def _tree(packed: bytes, filters: int) -> _Tree:
    """The tree of lists that are packed to bits; kept, as every form of a layer asks for it."""
    rows = np.frombuffer(packed, np.uint8).reshape(filters, -1)
    keys = np.ascontiguousarray(rows).view([("", np.void, rows.shape[1])]).ravel()
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    by_first = np.argsort(first)  # lists in the order of their first filter
    members = tuple(np.flatnonzero(inverse == unit) for unit in by_first)
    lists = np.unpackbits(rows[first[by_first]], axis=1).astype(np.float32)
    sizes = np.array([len(group) for group in members], np.int64)
    lengths = lists.sum(axis=1).astype(np.int64)
    return _Tree(members, lengths, tuple(_merges(lists, sizes, lengths)))


def _merges(
    lists: npt.NDArray[np.float32], sizes: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]
) -> list[tuple[int, int, int]]:
    """Merge until one group is left; in a round the cheaper half of the groups, each with its nearest neighbour."""
    sizes, lengths = sizes.copy(), lengths.copy()
    alive = np.arange(len(lists))
    merges: list[tuple[int, int, int]] = []
    while len(alive) > 1:
        nearest, added = _nearest(lists[alive], sizes[alive], lengths[alive])
        by_cost = np.argsort(added, kind="stable")
        enough = added[by_cost[(len(alive) - 1) // 2]]
        home = alive.copy()  # the group that has taken in each, for this round
        for i in by_cost[: len(alive) // 2 + 1]:
            one, other = int(home[i]), int(home[nearest[i]])
            if one == other:
                continue
            union = np.maximum(lists[one], lists[other])
            length = int(union.sum())
            cost = (sizes[one] + sizes[other]) * length - sizes[one] * lengths[one] - sizes[other] * lengths[other]
            if cost > enough:  # its neighbour has grown since
                continue
            kept, gone = sorted((one, other))
            lists[kept], lengths[kept] = union, length
            sizes[kept] += sizes[gone]
            sizes[gone] = 0
            home[home == gone] = kept
            merges.append((kept, gone, length))
        alive = alive[sizes[alive] > 0]
    return merges


def _nearest(
    lists: npt.NDArray[np.float32], sizes: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """For every group the one that is cheapest to merge it with, and what that adds."""
    nearest, added = np.empty(len(lists), np.int64), np.empty(len(lists), np.int64)
    held = sizes * lengths
    for begin in range(0, len(lists), _BLOCK):
        rows = slice(begin, begin + _BLOCK)
        common = np.rint(lists[rows] @ lists.T).astype(np.int64)  # below 2^24: exact in float32
        unions = lengths[rows, None] + lengths - common
        cost = (sizes[rows, None] + sizes) * unions - held[rows, None] - held
        cost[np.arange(len(cost)), np.arange(begin, begin + len(cost))] = np.iinfo(np.int64).max
        nearest[rows] = cost.argmin(axis=1)
        added[rows] = cost.min(axis=1)
    return nearest, added

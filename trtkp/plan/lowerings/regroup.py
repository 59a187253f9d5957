"""Regrouping: cluster the filters of a layer so that filters which read similar channels are computed together.

The published methods give every filter its own list of channels, which no standard operator can exploit. Here similar
lists are merged, bottom-up. A group reads the union of its filters' lists, and a filter's weight is zero where it did
not keep what its group reads, so the result is exact. Merging groups i and j of n_i and n_j filters, which read the
channels B_i and B_j, adds

    (n_i + n_j) · |B_i ∪ B_j| - n_i · |B_i| - n_j · |B_j|

kernels of zeros. Merging goes in rounds. In each, every group finds its cheapest neighbour, and the cheaper half of the
groups merges with theirs. A round is a few matrix products over the lists, with memory linear in them: a layer of 2048
filters and 1024 channels with a list per filter takes 0.4 s (``benchmarks/results/grouped.json``).

The merges form a tree. Groups of equal size are cut from the tree's order of the filters, groups of any size from the
tree itself, at the cut of least cost.

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

#: Filters of a group of equal size are padded to this multiple. It is the block of ONNX Runtime's convolution on AVX2,
#: and of a tensor core's tile.
FILTER_MULTIPLE = 8

#: Lists compared with all others at a time. It bounds memory: 256 rows against 2048 lists are 4 MB of int64.
_BLOCK = 256


@dataclass(frozen=True, eq=False)
class Grouping:
    """Filter groups, in the order of their first filter.

    Attributes:
        filters: filters of each group, ascending.
        lists: channels that each group reads, ascending.
    """

    filters: tuple[npt.NDArray[np.int64], ...]
    lists: tuple[npt.NDArray[np.int64], ...]

    @classmethod
    def of(cls, groups: list[npt.NDArray[np.int64]], kept: Bits) -> Grouping:
        """The grouping with these filter groups; ``kept`` says which channels each filter reads, bool [F, C]."""
        ordered = sorted((np.sort(group) for group in groups if len(group)), key=lambda group: int(group[0]))
        return cls(tuple(ordered), tuple(np.flatnonzero(kept[group].any(axis=0)) for group in ordered))

    @property
    def kernels(self) -> int:
        """Number of kernels computed, zeros of the unions included."""
        return sum(len(filters) * len(channels) for filters, channels in zip(self.filters, self.lists, strict=True))


@lru_cache(maxsize=1)
def kept_kernels(packed: PackedConv) -> Bits:
    """Which channels every filter reads at any tap, bool [F, C], read-only.

    The last result is cached, because every lowering of a layer asks for it in turn.
    """
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
    """The same convolution with other filter groups, as whole kernels (``KernelIndexConv``).

    Args:
        packed: the convolution.
        grouping: its new filter groups. Each must read at least what its filters keep.
        filter_multiple: multiple to which the filters of a group are padded.
        list_multiple: multiple to which lists are padded.
    """
    kept = np.zeros(packed.weight_shape, bool)
    for filters, channels in zip(grouping.filters, grouping.lists, strict=True):
        kept[np.ix_(filters, channels)] = True
    index = from_mask(kept, partition=[filters.tolist() for filters in grouping.filters])
    return pack(unpack(packed), index, row_multiple=filter_multiple, list_multiple=list_multiple)


def equal_groups(kept: Bits, groups: int) -> Grouping:
    """Groups of equal size, of similar filters. The last group is smaller if the number of filters does not divide.

    Example:
        Filters 0 and 2 read channels 0 and 1, filters 1 and 3 the other two:

        >>> kept = np.array([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1]], bool)
        >>> found = equal_groups(kept, 2)
        >>> [group.tolist() for group in found.filters], [channels.tolist() for channels in found.lists]
        ([[0, 2], [1, 3]], [[0, 1], [2, 3]])
    """
    size = -(-len(kept) // groups)
    order = _tree_of(kept).order()
    return Grouping.of([order[begin : begin + size] for begin in range(0, len(order), size)], kept)


def cheapest_groups(kept: Bits, cost: Callable[[int, int], float], most: int) -> Grouping:
    """The cut through the tree with the least sum of ``cost(filters, channels)``, into at most ``most`` groups."""
    return Grouping.of(_tree_of(kept).cheapest(cost, most), kept)


@dataclass(frozen=True, eq=False)
class _Tree:
    """The tree of merges.

    Attributes:
        members: filters of each distinct list.
        lengths: channels of each distinct list.
        merges: from first to last, the list that absorbs, the list that is absorbed, and the length of their union.
    """

    members: tuple[npt.NDArray[np.int64], ...]
    lengths: npt.NDArray[np.int64]
    merges: tuple[tuple[int, int, int], ...]

    def order(self) -> npt.NDArray[np.int64]:
        """All filters. Those that were merged early stand side by side; otherwise earlier filters come first."""
        (group,) = self._merged(len(self.merges))
        return group

    def cheapest(self, cost: Callable[[int, int], float], most: int) -> list[npt.NDArray[np.int64]]:
        """The filters of each group, at the number of merges where the sum of costs is least."""
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
        """The filters of each group after the first ``count`` merges."""
        groups: list[list[npt.NDArray[np.int64]]] = [[group] for group in self.members]
        for kept, gone, _ in self.merges[:count]:
            groups[kept] += groups[gone]
            groups[gone] = []
        return [np.concatenate(group) for group in groups if group]


def _tree_of(kept: Bits) -> _Tree:
    return _tree(np.packbits(kept, axis=1).tobytes(), len(kept))


@lru_cache(maxsize=64)
def _tree(packed: bytes, filters: int) -> _Tree:
    """The tree of the lists in ``packed``, one bit per channel. Cached, as every lowering of a layer asks for it.

    Packed bytes are the key because arrays cannot be hashed; 64 trees are enough for the lowerings of one layer.
    """
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
    """Merge until one group is left. In each round the cheaper half of the groups merges with its nearest neighbour.

    Merging half of the groups needs about log2(G) rounds. Merging the best pair alone would need G - 1 rounds, and a
    matrix product over all lists in each.
    """
    sizes, lengths = sizes.copy(), lengths.copy()
    alive = np.arange(len(lists))
    merges: list[tuple[int, int, int]] = []
    while len(alive) > 1:
        nearest, added = _nearest(lists[alive], sizes[alive], lengths[alive])
        by_cost = np.argsort(added, kind="stable")
        enough = added[by_cost[(len(alive) - 1) // 2]]  # the median: what the cheaper half of the merges may cost
        home = alive.copy()  # the group that each group has been merged into in this round
        for i in by_cost[: len(alive) // 2 + 1]:
            one, other = int(home[i]), int(home[nearest[i]])
            if one == other:
                continue
            union = np.maximum(lists[one], lists[other])
            length = int(union.sum())
            cost = (sizes[one] + sizes[other]) * length - sizes[one] * lengths[one] - sizes[other] * lengths[other]
            if cost > enough:  # the neighbour has grown in this round, so the merge is no longer among the cheaper half
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
    """For every group, the group that is cheapest to merge it with, and how many kernels of zeros that adds."""
    nearest, added = np.empty(len(lists), np.int64), np.empty(len(lists), np.int64)
    held = sizes * lengths
    for begin in range(0, len(lists), _BLOCK):
        rows = slice(begin, begin + _BLOCK)
        common = np.rint(lists[rows] @ lists.T).astype(np.int64)  # below 2^24: exact in float32
        unions = lengths[rows, None] + lengths - common
        cost = (sizes[rows, None] + sizes) * unions - held[rows, None] - held
        # No group is its own neighbour.
        cost[np.arange(len(cost)), np.arange(begin, begin + len(cost))] = np.iinfo(np.int64).max
        nearest[rows] = cost.argmin(axis=1)
        added[rows] = cost.min(axis=1)
    return nearest, added

"""Pool scores over blocks of filters and channels, so that a list is shared by filters that compute together.

A block is ``filter_group`` filters of one ONNX group times ``channel_block`` consecutive channels; 1 x 1 is the papers'
granularity. Filters are grouped in their order, or clustered first so that those of a group agree; index sets hold any
partition, so the weights stay where they are. The last block of either kind is smaller where the size does not divide.
"""

from __future__ import annotations

from math import gcd
from typing import Any

import numpy as np
import numpy.typing as npt

from trtkp.errors import InputError
from trtkp.index.conv_layer import ConvLayer

__all__ = ["Blocks", "blocks_of", "cluster_filters", "rounded"]


class Blocks:
    """How the kernels of ``W[F, C, ...]`` fall into blocks.

    Args:
        filters: F.
        channels: C, of one ONNX group.
        groups: ONNX groups; a filter group never crosses one.
        filter_group: filters of a block.
        channel_block: channels of a block.
        order: the filters in the order in which they are grouped, [F], ONNX group by ONNX group; without it, as they
            come.

    Raises:
        InputError: a block size below one.
    """

    def __init__(
        self,
        filters: int,
        channels: int,
        groups: int,
        filter_group: int,
        channel_block: int,
        order: npt.NDArray[np.int64] | None = None,
    ) -> None:
        if filter_group < 1 or channel_block < 1:
            raise InputError(f"blocks of {filter_group} filters x {channel_block} channels: sizes start at 1")
        per_group = filters // groups
        starts = np.arange(0, per_group, filter_group)
        self._filter_starts = (np.arange(groups)[:, None] * per_group + starts).ravel()
        self._channel_starts = np.arange(0, channels, channel_block)
        self._filters = np.diff(np.append(self._filter_starts, filters))
        self._channels = np.diff(np.append(self._channel_starts, channels))
        self._order = np.arange(filters) if order is None else order

    @property
    def shape(self) -> tuple[int, int]:
        """Number of filter groups and of channel blocks."""
        return len(self._filters), len(self._channels)

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Kernels in every block, int64 [filter groups, channel blocks]."""
        return np.multiply.outer(self._filters, self._channels)

    @property
    def group_of_filter(self) -> npt.NDArray[np.int64]:
        """The filter group of every filter, [F]."""
        owner = np.empty(len(self._order), np.int64)
        owner[self._order] = np.repeat(np.arange(len(self._filters)), self._filters)
        return owner

    @property
    def block_of_channel(self) -> npt.NDArray[np.int64]:
        """The channel block of every channel, [C]."""
        return np.repeat(np.arange(len(self._channels)), self._channels)

    def mean(self, scores: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Mean score of every block, from scores [F, C, ...]; the mean, so that smaller last blocks compete fairly."""
        rows = np.add.reduceat(scores.astype(np.float64)[self._order], self._filter_starts, axis=0)
        sums = np.add.reduceat(rows, self._channel_starts, axis=1)
        means: npt.NDArray[np.float64] = sums / self.sizes.reshape(self.shape + (1,) * (sums.ndim - 2))
        return means

    def equal_share(self, chosen: npt.NDArray[np.bool_]) -> int:
        """Blocks of every filter group that hold the same share of kernels as the chosen: ``floor(columns · share)``.

        Args:
            chosen: blocks, [filter groups, channel blocks].
        """
        return int(self.sizes[chosen].sum()) * self.shape[1] // int(self.sizes.sum())

    def spread(self, blocks: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The value of its block for every kernel, [F, C, ...], from values [filter groups, channel blocks, ...]."""
        return blocks[self.group_of_filter][:, self.block_of_channel]


def blocks_of(
    layer: ConvLayer, scores: npt.NDArray[Any], filter_group: int, channel_block: int = 1, *, cluster: bool = False
) -> Blocks:
    """The blocks of a layer; with ``cluster`` its filters are grouped by their scores [F, C, ...]."""
    order = None
    if cluster and filter_group > 1:
        order = cluster_filters(scores.reshape(layer.filters, -1), filter_group, layer.groups)
    return Blocks(layer.filters, layer.channels, layer.groups, filter_group, channel_block, order)


def cluster_filters(scores: npt.NDArray[Any], size: int, groups: int = 1) -> npt.NDArray[np.int64]:
    """An order of the filters in which ``size`` consecutive ones score alike, int64 [F].

    Greedy, ONNX group by ONNX group: the filter of largest score norm that is left starts a group, and the one of
    largest cosine to the group's sum joins until it is full. Of equals the lowest filter is taken.

    Args:
        scores: scores of every filter, [F, D], not negative.
        size: filters of a group.
        groups: ONNX groups.
    """
    norms = np.linalg.norm(scores.astype(np.float64), axis=1)
    directions = scores / np.maximum(norms, np.finfo(np.float64).tiny)[:, None]
    order: list[int] = []
    per_group = len(scores) // groups
    for first in range(0, len(scores), per_group):
        left = np.arange(first, first + per_group)
        while len(left):
            chosen = int(np.argmax(norms[left]))
            total = np.zeros(directions.shape[1])
            for _ in range(min(size, len(left))):
                total += directions[left[chosen]]
                order.append(int(left[chosen]))
                left = np.delete(left, chosen)
                chosen = int(np.argmax(directions[left] @ total)) if len(left) else 0
    return np.array(order, np.int64)


def rounded(count: int, round_to: int, channel_block: int, most: int) -> int:
    """The number of blocks nearest to ``count`` whose channels are a multiple of ``round_to``.

    At least one multiple, at most ``most`` (which need not be one), and ``most`` where that many are kept.
    """
    multiple = round_to // gcd(round_to, channel_block)
    return most if count >= most else min(most, max(1, (2 * count + multiple) // (2 * multiple)) * multiple)

"""Average scores over blocks of kernels, so that several filters share one list of kept channels or positions.

A block is ``filter_group`` filters of one ONNX group times ``channel_block`` consecutive channels. The papers prune
single kernels, which are blocks of 1 x 1. Larger blocks are ours: a list that many filters share becomes a gather and
an ordinary grouped convolution, which is what makes it fast.

Filters are grouped in their order, or clustered first so that the filters of a group have similar scores. An index set
can hold any partition of the filters, so clustering does not reorder the weights. Where the block size does not divide
the number of filters or channels, the last block is smaller.
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
    """The partition of the kernels of ``W[F, C, ...]`` into blocks.

    Args:
        filters: F.
        channels: C, the channels of one ONNX group.
        groups: number of ONNX groups. A filter group never crosses the border of an ONNX group.
        filter_group: filters per block.
        channel_block: channels per block.
        order: int64 [F], the filters in the order in which they are grouped, one ONNX group after the other. Without
            it, filters are grouped in their own order.

    Raises:
        InputError: a block size is below one.

    Example:
        >>> blocks = Blocks(filters=4, channels=6, groups=1, filter_group=2, channel_block=4)
        >>> blocks.shape  # two filter groups; six channels make a block of four and one of two
        (2, 2)
        >>> blocks.sizes.tolist()
        [[8, 4], [8, 4]]
        >>> blocks.group_of_filter.tolist(), blocks.block_of_channel.tolist()
        ([0, 0, 1, 1], [0, 0, 0, 0, 1, 1])
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
        """Number of filter groups, number of channel blocks."""
        return len(self._filters), len(self._channels)

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Number of kernels in each block, int64 [filter groups, channel blocks]."""
        return np.multiply.outer(self._filters, self._channels)

    @property
    def group_of_filter(self) -> npt.NDArray[np.int64]:
        """The filter group of each filter, int64 [F]."""
        owner = np.empty(len(self._order), np.int64)
        owner[self._order] = np.repeat(np.arange(len(self._filters)), self._filters)
        return owner

    @property
    def block_of_channel(self) -> npt.NDArray[np.int64]:
        """The channel block of each channel, int64 [C]."""
        return np.repeat(np.arange(len(self._channels)), self._channels)

    def mean(self, scores: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Mean score of each block, float64 [filter groups, channel blocks, ...], from scores [F, C, ...]."""
        # a sum would always rank the smaller last block lowest
        rows = np.add.reduceat(scores.astype(np.float64)[self._order], self._filter_starts, axis=0)
        sums = np.add.reduceat(rows, self._channel_starts, axis=1)
        means: npt.NDArray[np.float64] = sums / self.sizes.reshape(self.shape + (1,) * (sums.ndim - 2))
        return means

    def equal_share(self, chosen: npt.NDArray[np.bool_]) -> int:
        """Number of channel blocks that, taken from each filter group, make up the share of kernels in ``chosen``.

        That is ``floor(channel blocks · share)``, computed in integers.

        Args:
            chosen: True for the blocks whose share is wanted, bool [filter groups, channel blocks].
        """
        return int(self.sizes[chosen].sum()) * self.shape[1] // int(self.sizes.sum())

    def spread(self, blocks: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Give each kernel the value of its block: [F, C, ...] from values [filter groups, channel blocks, ...]."""
        return blocks[self.group_of_filter][:, self.block_of_channel]


def blocks_of(
    layer: ConvLayer, scores: npt.NDArray[Any], filter_group: int, channel_block: int = 1, *, cluster: bool = False
) -> Blocks:
    """The blocks of a layer. With ``cluster``, filters with similar ``scores`` [F, C, ...] share a group."""
    order = None
    if cluster and filter_group > 1:
        order = cluster_filters(scores.reshape(layer.filters, -1), filter_group, layer.groups)
    return Blocks(layer.filters, layer.channels, layer.groups, filter_group, channel_block, order)


def cluster_filters(scores: npt.NDArray[Any], size: int, groups: int = 1) -> npt.NDArray[np.int64]:
    """An order of the filters in which each run of ``size`` filters has similar scores, int64 [F].

    The algorithm is greedy and works through one ONNX group at a time. The remaining filter with the largest score norm
    starts a group. The filter whose scores have the largest cosine with the sum of the group joins next, until the
    group is full. Ties go to the lower filter.

    Args:
        scores: scores of each filter, [F, D], not negative.
        size: filters per group.
        groups: number of ONNX groups.

    Example:
        >>> scores = np.array([[9.0, 0.0], [0.0, 5.0], [8.0, 1.0], [0.0, 4.0]])
        >>> cluster_filters(scores, size=2).tolist()  # filters 0 and 2 favour the first column, 1 and 3 the second
        [0, 2, 1, 3]
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
    """The number of channel blocks nearest to ``count`` whose channels are a multiple of ``round_to``.

    The result is at least one multiple and at most ``most``, which need not be a multiple: a layer that keeps all of
    its blocks still keeps all of them.

    Example:
        >>> rounded(13, round_to=8, channel_block=1, most=64)
        16
        >>> rounded(13, round_to=8, channel_block=4, most=64)  # 13 blocks of 4 channels: 14 blocks are 56 channels
        14
    """
    multiple = round_to // gcd(round_to, channel_block)
    return most if count >= most else min(most, max(1, (2 * count + multiple) // (2 * multiple)) * multiple)

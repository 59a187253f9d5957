"""Pool scores over blocks of filters and channels, so that a list is shared by filters that compute together.

A block is ``filter_group`` consecutive filters of one ONNX group times ``channel_block`` consecutive channels; 1 x 1 is
the papers' granularity. The last block of either kind is smaller where the size does not divide.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from trtkp.errors import InputError

__all__ = ["Blocks"]


class Blocks:
    """How the kernels of ``W[F, C, ...]`` fall into blocks.

    Args:
        filters: F.
        channels: C, of one ONNX group.
        groups: ONNX groups; a filter group never crosses one.
        filter_group: filters of a block.
        channel_block: channels of a block.

    Raises:
        InputError: a block size below one.
    """

    def __init__(self, filters: int, channels: int, groups: int, filter_group: int, channel_block: int) -> None:
        if filter_group < 1 or channel_block < 1:
            raise InputError(f"blocks of {filter_group} filters x {channel_block} channels: sizes start at 1")
        per_group = filters // groups
        starts = np.arange(0, per_group, filter_group)
        self._filter_starts = (np.arange(groups)[:, None] * per_group + starts).ravel()
        self._channel_starts = np.arange(0, channels, channel_block)
        self._filters = np.diff(np.append(self._filter_starts, filters))
        self._channels = np.diff(np.append(self._channel_starts, channels))

    @property
    def shape(self) -> tuple[int, int]:
        """Number of filter groups and of channel blocks."""
        return len(self._filters), len(self._channels)

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Kernels in every block, int64 [filter groups, channel blocks]."""
        return np.multiply.outer(self._filters, self._channels)

    def mean(self, scores: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Mean score of every block, from scores [F, C]; the mean, so that smaller last blocks compete fairly."""
        rows = np.add.reduceat(scores.astype(np.float64), self._filter_starts, axis=0)
        return np.add.reduceat(rows, self._channel_starts, axis=1) / self.sizes

    def spread(self, blocks: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The value of its block for every kernel, [F, C], from values [filter groups, channel blocks]."""
        return np.repeat(np.repeat(blocks, self._filters, axis=0), self._channels, axis=1)

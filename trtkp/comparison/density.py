"""Density maps: for every pruned layer, a small picture of which filters kept which channels."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from trtkp.bundle import Bundle
from trtkp.comparison.result import DensityMap
from trtkp.index.index_set import IndexSet

__all__ = ["LARGEST", "density_cells", "density_maps", "tap_shares"]

#: Largest number of cells of a map in each direction; larger layers are averaged over blocks. A ResNet-50 has 53 layers
#: of up to 2048 x 512: at full size their maps would dominate the report.
LARGEST = 64


def density_maps(bundle: Bundle) -> Iterable[DensityMap]:
    """Yield a map of every pruned layer of a bundle, in the order of the net."""
    seen = set()
    for record in bundle.manifest.layers:
        index = bundle.index_sets.get(record.name)
        if index is None or record.name in seen:  # a weight that serves two convolutions has one index set
            continue
        seen.add(record.name)
        yield DensityMap(
            layer=record.name,
            kind=str(index.kind),
            shape=index.shape,
            density=index.density,
            filter_groups=index.filter_groups,
            index_bytes=record.index_bytes,
            paper_index_bytes=record.paper_index_bytes,
            cells=density_cells(index),
            taps=tap_shares(index),
        )


def density_cells(index: IndexSet, largest: int = LARGEST) -> npt.NDArray[np.uint8]:
    """Compute the share of taps kept by every kernel, or by every block of kernels.

    Args:
        index: the index set of a weight [F, C, R, S].
        largest: largest number of cells in each direction. A cell of a larger layer is the mean over a block; the
            sizes of the blocks differ by at most one filter or channel.

    Returns:
        uint8 [min(F, largest), min(C, largest)], 255 for all taps kept; filters in the weight's own order.
    """
    taps = index.shape[2] * index.shape[3]
    kept = np.bitwise_count(index.group_taps)[index.group_of_filter] / taps  # [F, C]
    return np.rint(_means(_means(kept, largest).T, largest).T * 255).astype(np.uint8)


def tap_shares(index: IndexSet) -> npt.NDArray[np.uint8]:
    """Compute for every tap the share of kernels that keep it: uint8 [R, S], 255 for all kernels."""
    rows, columns = index.shape[2:]
    bits = np.arange(rows * columns, dtype=np.uint64)
    readers = np.bincount(index.group_of_filter, minlength=index.filter_groups)  # [G]
    kept = ((index.group_taps[:, :, None] >> bits) & np.uint64(1)).sum(axis=1) * readers[:, None]  # [G, taps]
    return np.rint(kept.sum(axis=0) * 255 / (index.shape[0] * index.shape[1])).astype(np.uint8).reshape(rows, columns)


def _means(values: npt.NDArray[np.float64], largest: int) -> npt.NDArray[np.float64]:
    """Average rows over at most ``largest`` blocks of nearly equal size."""
    rows = len(values)
    count = min(rows, largest)
    begins = np.arange(count) * rows // count
    sizes = np.diff(np.append(begins, rows))
    return np.add.reduceat(values, begins, axis=0) / sizes[:, None]

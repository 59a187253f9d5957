"""Density maps: which filters kept which channels, as a small picture of every index set."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from trtkp.bundle import Bundle
from trtkp.comparison.result import DensityMap
from trtkp.index.index_set import IndexSet

__all__ = ["LARGEST", "density_cells", "density_maps", "tap_shares"]

#: Cells of a map in each direction; larger layers are averaged over blocks.
LARGEST = 64


def density_maps(bundle: Bundle) -> Iterable[DensityMap]:
    """A map of every pruned layer, in the order of the net."""
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
    """Share of taps kept as uint8 [min(F, largest), min(C, largest)], filters in the weight's own order.

    A cell of a larger layer is the mean over its block; blocks differ by at most one filter or channel.
    """
    taps = index.shape[2] * index.shape[3]
    kept = np.bitwise_count(index.group_taps)[index.group_of_filter] / taps  # [F, C]
    return np.rint(_means(_means(kept, largest).T, largest).T * 255).astype(np.uint8)


def tap_shares(index: IndexSet) -> npt.NDArray[np.uint8]:
    """Share of the kernels that keep a tap, uint8 [R, S], 255 for all."""
    rows, columns = index.shape[2:]
    bits = np.arange(rows * columns, dtype=np.uint64)
    readers = np.bincount(index.group_of_filter, minlength=index.filter_groups)  # [G]
    kept = ((index.group_taps[:, :, None] >> bits) & np.uint64(1)).sum(axis=1) * readers[:, None]  # [G, taps]
    return np.rint(kept.sum(axis=0) * 255 / (index.shape[0] * index.shape[1])).astype(np.uint8).reshape(rows, columns)


def _means(values: npt.NDArray[np.float64], largest: int) -> npt.NDArray[np.float64]:
    """Rows averaged into at most ``largest`` even blocks."""
    rows = len(values)
    count = min(rows, largest)
    begins = np.arange(count) * rows // count
    sizes = np.diff(np.append(begins, rows))
    return np.add.reduceat(values, begins, axis=0) / sizes[:, None]

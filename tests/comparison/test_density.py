"""Density maps against the mask itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import trtkp
from trtkp.comparison.density import density_cells, density_maps, tap_shares
from trtkp.index.index_set import from_mask


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 12), st.integers(1, 3), st.integers(1, 4))
def test_small_layers_are_shown_as_they_are(seed: int, filters: int, channels: int, rows: int, columns: int) -> None:
    mask = np.random.default_rng(seed).random((filters, channels, rows, columns)) < 0.5
    index = from_mask(mask)
    np.testing.assert_array_equal(density_cells(index), np.rint(255 * mask.mean(axis=(2, 3))))
    np.testing.assert_array_equal(tap_shares(index), np.rint(255 * mask.mean(axis=(0, 1))))


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9))
def test_large_layers_are_averaged(filters: int, channels: int, largest: int) -> None:
    mask = np.random.default_rng(filters * 41 + channels).random((filters, channels, 3, 3)) < 0.3
    cells = density_cells(from_mask(mask), largest)
    assert cells.shape == (min(filters, largest), min(channels, largest))
    kept = mask.mean(axis=(2, 3))
    edges = [np.append(np.arange(n) * size // n, size) for n, size in zip(cells.shape, kept.shape, strict=True)]
    for i, j in np.ndindex(cells.shape):
        block = kept[edges[0][i] : edges[0][i + 1], edges[1][j] : edges[1][j + 1]]
        assert block.size
        assert cells[i, j] == pytest.approx(255 * block.mean(), abs=0.51)


def test_maps_of_a_bundle(folder: Path) -> None:
    bundle = trtkp.load(folder / "kep")
    maps = list(density_maps(bundle))
    assert [one.layer for one in maps] == ["w1", "w2"]
    for one in maps:
        mask = bundle.index_sets[one.layer].mask()
        assert one.shape == mask.shape
        assert one.density == pytest.approx(mask.mean())
        assert one.cells.mean() / 255 == pytest.approx(mask.mean(), abs=0.01)
        assert set(one.taps.ravel().tolist()) == {0, 255}  # the layer shares its positions
    assert list(density_maps(trtkp.load(folder / "dense"))) == []

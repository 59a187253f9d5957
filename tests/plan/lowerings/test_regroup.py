"""Regrouping: every group reads what its filters read, the convolution stays the same, and planted groups are found."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trtkp.graph.packing import pack, unpack
from trtkp.index.index_set import from_mask
from trtkp.plan.lowerings.regroup import Grouping, cheapest_groups, equal_groups, kept_kernels, regroup

Bits = np.ndarray[Any, np.dtype[np.bool_]]

masks = st.tuples(st.integers(1, 12), st.integers(1, 20), st.sampled_from([(1, 1), (1, 3), (3, 3)])).flatmap(
    lambda size: hnp.arrays(bool, (size[0], size[1], *size[2]))
)


def planted(filters: int, channels: int, groups: int, density: float, seed: int = 0) -> tuple[Bits, Bits]:
    """Filters in shuffled order that share so many lists; and the group of each."""
    rng = np.random.default_rng(seed)
    lists = rng.random((groups, channels)).argsort(axis=1) < density * channels
    owner = rng.permutation(np.arange(filters) % groups)
    return lists[owner], owner


def groupings(kept: Bits) -> list[Grouping]:
    sizes = sorted({min(len(kept), count) for count in (1, 2, 3, 5)})
    anything = cheapest_groups(kept, lambda filters, channels: filters * channels + 5.0, 4)
    assert len(anything.filters) <= 4
    return [anything, *(equal_groups(kept, groups) for groups in sizes)]


@given(masks, st.sampled_from([1, 4, 8]), st.sampled_from([1, 8]))
def test_exact(mask: Bits, list_multiple: int, filter_multiple: int) -> None:
    weight = np.random.default_rng(0).normal(size=mask.shape).astype(np.float32)
    packed = pack(weight, from_mask(mask))
    kept = kept_kernels(packed)
    np.testing.assert_array_equal(kept, mask.any(axis=(2, 3)))
    for grouping in groupings(kept):
        assert sorted(np.concatenate(grouping.filters)) == list(range(len(mask)))
        for filters, channels in zip(grouping.filters, grouping.lists, strict=True):
            assert not kept[filters].any(axis=0)[np.setdiff1d(np.arange(mask.shape[1]), channels)].any()
            assert kept[filters][:, channels].any(axis=0).all()
        again = regroup(packed, grouping, filter_multiple=filter_multiple, list_multiple=list_multiple)
        assert again.base == "KernelIndexConv"
        assert again.index.shape[1] % list_multiple == 0
        assert not np.any(np.bincount(again.row_group) % filter_multiple)
        np.testing.assert_array_equal(unpack(again), np.where(mask, weight, 0))


@pytest.mark.parametrize("groups", [2, 4, 8])
def test_planted_groups_are_found(groups: int) -> None:
    kept, owner = planted(64, 128, groups, 0.25)
    for grouping in (equal_groups(kept, groups), cheapest_groups(kept, lambda n, c: n * c + 1.0, 16)):
        assert len(grouping.filters) == groups
        assert grouping.kernels == kept.sum()
        assert all(len(set(owner[filters])) == 1 for filters in grouping.filters)


def test_planted_groups_are_found_among_noise() -> None:
    """Lists that differ a little from those of their group: nothing is lost against the planted groups."""
    kept, owner = planted(128, 256, 4, 0.25)
    rng = np.random.default_rng(1)
    noisy = kept & (rng.random(kept.shape) < 0.9)
    wanted = Grouping.of([np.flatnonzero(owner == group) for group in range(4)], noisy).kernels
    in_order = Grouping.of(np.array_split(np.arange(128), 4), noisy).kernels
    assert equal_groups(noisy, 4).kernels == wanted < 0.4 * in_order


def test_filters_keep_their_order_where_it_serves() -> None:
    lists = np.random.default_rng(0).random((4, 64)) < 0.3
    grouping = equal_groups(np.repeat(lists, 16, axis=0), 4)
    np.testing.assert_array_equal(np.concatenate(grouping.filters), np.arange(64))


def test_the_cost_decides_the_number_of_groups() -> None:
    kept, _ = planted(64, 64, 8, 0.25)
    dear, cheap = (cheapest_groups(kept, lambda n, c, fixed=fixed: n * c + fixed, 16) for fixed in (1e6, 0.0))
    assert (len(dear.filters), len(cheap.filters)) == (1, 8)
    assert len(cheapest_groups(kept, lambda n, c: n * c, 3).filters) == 3


def test_empty_lists() -> None:
    kept = np.zeros((6, 8), bool)
    kept[4:, :2] = True
    grouping = equal_groups(kept, 3)
    assert [filters.tolist() for filters in grouping.filters] == [[0, 1], [2, 3], [4, 5]]
    assert [len(channels) for channels in grouping.lists] == [0, 0, 2]


@pytest.mark.parametrize("shared", [1, 16])
def test_resnet50_in_seconds(shared: int) -> None:
    """The widest layers of ResNet-50, a list per filter; the whole net has ten times as much."""
    rng = np.random.default_rng(0)
    start = time.thread_time()  # of this thread alone: others may use the machine
    for filters, channels in ((2048, 512), (2048, 1024), (512, 2048), (512, 512)):
        lists = rng.random((filters // shared, channels)) < 0.4
        kept = rng.permutation(np.repeat(lists, shared, axis=0))
        assert equal_groups(kept, 8).kernels <= kept.size
    assert time.thread_time() - start < 15

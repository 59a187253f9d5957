from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtkp.errors import InputError
from trtkp.pruning.granularity import Blocks, cluster_filters, rounded


@given(
    st.integers(1, 3), st.integers(1, 5), st.integers(1, 7), st.integers(1, 6), st.integers(1, 8), st.integers(0, 99)
)
def test_means_against_loops(groups: int, per_group: int, channels: int, fg: int, cb: int, seed: int) -> None:
    scores = np.random.default_rng(seed).random((groups * per_group, channels))
    blocks = Blocks(groups * per_group, channels, groups, fg, cb)
    expected: list[list[float]] = []
    spread: Any = np.empty_like(scores)
    for group in range(groups):
        for first in range(0, per_group, fg):
            rows = slice(group * per_group + first, group * per_group + min(first + fg, per_group))
            expected.append([])
            for begin in range(0, channels, cb):
                mean = scores[rows, begin : begin + cb].mean()
                expected[-1].append(mean)
                spread[rows, begin : begin + cb] = mean
    assert blocks.shape == (len(expected), len(expected[0]))
    assert blocks.sizes.sum() == scores.size
    np.testing.assert_allclose(blocks.mean(scores), expected)
    np.testing.assert_allclose(blocks.spread(blocks.mean(scores)), spread)


def test_one_by_one_is_the_identity() -> None:
    scores = np.random.default_rng(0).random((6, 5))
    blocks = Blocks(6, 5, 2, 1, 1)
    assert np.array_equal(blocks.mean(scores), scores)
    assert np.array_equal(blocks.spread(scores), scores)


@pytest.mark.parametrize("sizes", [(0, 1), (1, 0), (-2, 4)])
def test_sizes_start_at_one(sizes: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="sizes start at 1"):
        Blocks(4, 4, 1, *sizes)


@given(st.integers(1, 3), st.integers(1, 6), st.integers(1, 4), st.integers(0, 99))
def test_blocks_in_another_order(groups: int, per_group: int, fg: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.random((groups * per_group, 5, 2))
    order = np.concatenate([g * per_group + rng.permutation(per_group) for g in range(groups)])
    blocks = Blocks(groups * per_group, 5, groups, fg, 2, order)
    plain = Blocks(groups * per_group, 5, groups, fg, 2)
    assert np.array_equal(blocks.mean(scores), plain.mean(scores[order]))
    spread = blocks.spread(blocks.mean(scores))
    assert np.array_equal(spread[order], plain.spread(plain.mean(scores[order])))


@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 5), st.integers(0, 99))
def test_clusters_are_a_permutation_within_onnx_groups(groups: int, per_group: int, size: int, seed: int) -> None:
    scores = np.random.default_rng(seed).random((groups * per_group, 4))
    order = cluster_filters(scores, size, groups)
    assert np.array_equal(order // per_group, np.repeat(np.arange(groups), per_group))
    assert sorted(order) == list(range(groups * per_group))


def test_like_filters_are_clustered() -> None:
    rng = np.random.default_rng(0)
    kinds = np.eye(4)[rng.permutation(np.repeat(np.arange(4), 8))]
    order = cluster_filters(kinds * rng.uniform(0.5, 2, (32, 1)) + 0.01 * rng.random((32, 4)), 8)
    assert all(len(set(part)) == 1 for part in kinds.argmax(axis=1)[order].reshape(4, 8))
    assert cluster_filters(np.ones((6, 3)), 3).tolist() == list(range(6))


@pytest.mark.parametrize(
    ("count", "round_to", "block", "most", "expected"),
    [
        (20, 1, 1, 40, 20), (20, 8, 1, 40, 24), (19, 8, 1, 40, 16), (1, 8, 1, 40, 8), (0, 8, 1, 40, 8),
        (41, 16, 1, 44, 44), (3, 8, 1, 5, 5), (13, 4, 1, 13, 13), (12, 4, 1, 13, 12),
        (5, 4, 2, 20, 6), (5, 4, 3, 20, 4), (5, 8, 3, 20, 8), (5, 4, 6, 20, 6), (5, 4, 8, 20, 5),
    ],
)  # fmt: skip
def test_rounding(count: int, round_to: int, block: int, most: int, expected: int) -> None:
    """Blocks whose channels are a multiple, or all of them."""
    found = rounded(count, round_to, block, most)
    assert found == expected
    assert found == most or found * block % round_to == 0

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtkp.errors import InputError
from trtkp.prune.granularity import Blocks


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

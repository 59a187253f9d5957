"""Covers of kernel taps: exact, at least cost, and found fast."""

from __future__ import annotations

import time
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtkp.plan.lowerings.cover import MAX_PARTS, PART_COST, Rectangle, bounding_box, cover

Taps = tuple[int, ...]


def rectangles(rows: int, columns: int) -> list[Rectangle]:
    spans = [[(a, b) for a in range(n) for b in range(a, n)] for n in (rows, columns)]
    return [Rectangle(top, left, bottom, right) for top, bottom in spans[0] for left, right in spans[1]]


def cost(parts: tuple[Rectangle, ...]) -> float:
    return sum(part.area for part in parts) + PART_COST * (len(parts) - 1)


def check_exact(taps: Taps, columns: int) -> float:
    parts = cover(taps, columns)
    assert 1 <= len(parts) <= MAX_PARTS
    assert set(taps) <= {tap for part in parts for tap in part.taps(columns)}
    assert list(parts) == sorted(parts)
    return cost(parts)


def test_every_3x3_cover_against_all_sets_of_rectangles() -> None:
    every = rectangles(3, 3)
    held = np.array([sum(1 << tap for tap in rectangle.taps(3)) for rectangle in every])
    areas = np.array([rectangle.area for rectangle in every])
    costs = np.full(512, np.inf)  # by the taps that a set of rectangles holds
    for count in range(1, MAX_PARTS + 1):
        sets = np.array(list(combinations(range(len(every)), count)))
        unions = np.bitwise_or.reduce(held[sets], axis=1)
        np.minimum.at(costs, unions, areas[sets].sum(axis=1) + PART_COST * (count - 1))
    for taps in range(1, 512):
        best = costs[(np.arange(512) & taps) == taps].min()
        assert check_exact(tuple(t for t in range(9) if taps >> t & 1), 3) == best


def least_cost(taps: Taps, rows: int, columns: int) -> float:
    """The same problem as an integer programme."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    every = rectangles(rows, columns)
    holds = np.array([[tap in rectangle.taps(columns) for rectangle in every] for tap in taps], float)
    result = milp(
        [rectangle.area + PART_COST for rectangle in every],
        constraints=[LinearConstraint(holds, 1, np.inf), LinearConstraint(np.ones(len(every)), 1, MAX_PARTS)],
        bounds=Bounds(0, 1),
        integrality=np.ones(len(every)),
    )
    assert result.success
    return round(result.fun - PART_COST, 6)


@pytest.mark.parametrize(("rows", "columns"), [(5, 5), (1, 7), (7, 3), (4, 5)])
def test_larger_kernels_against_an_integer_programme(rows: int, columns: int) -> None:
    pytest.importorskip("scipy")

    @settings(max_examples=15)
    @given(st.sets(st.integers(0, rows * columns - 1), min_size=1, max_size=rows * columns))
    def check(taps: set[int]) -> None:
        sorted_taps = tuple(sorted(taps))
        assert check_exact(sorted_taps, columns) == least_cost(sorted_taps, rows, columns)

    check()


def test_by_hand() -> None:
    assert cover((0, 1, 3, 4), 3) == (Rectangle(0, 0, 1, 1),)
    cross = (1, 3, 4, 5, 7)
    assert cover(cross, 3) == (Rectangle(0, 1, 2, 1), Rectangle(1, 0, 1, 2))
    # opposite corners: two points and a part's cost, against nine taps
    assert cover((0, 8), 3) == (Rectangle(0, 0, 0, 0), Rectangle(2, 2, 2, 2))
    # two taps at a distance of two cost the same as one part of three: fewer parts
    assert cover((0, 2), 3) == (Rectangle(0, 0, 0, 2),)
    # the taps of a 2 x 4 kernel count row by row
    assert cover((3, 7), 4) == (Rectangle(0, 3, 1, 3),)


def test_rectangle() -> None:
    rectangle = Rectangle(1, 2, 3, 2)
    assert rectangle.shape == (3, 1)
    assert rectangle.area == 3
    assert rectangle.taps(4) == [6, 10, 14]
    assert bounding_box([6, 9], 4) == Rectangle(1, 1, 2, 2)


@pytest.mark.serial
def test_speed() -> None:
    cover.cache_clear()
    begin = time.thread_time()  # of this thread alone: others may use the machine
    for taps in range(1, 512):
        cover(tuple(t for t in range(9) if taps >> t & 1), 3)
    rng = np.random.default_rng(0)
    for size, columns, count in ((25, 5, 12), (49, 7, 25)):
        for _ in range(3):
            cover(tuple(sorted(rng.choice(size, count, replace=False).tolist())), columns)
    assert time.thread_time() - begin < 5

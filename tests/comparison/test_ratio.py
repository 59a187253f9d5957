"""The interval of a speed-up, against SciPy's bootstrap and on data whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from trtkp.comparison.ratio import ratio_of_medians

TIMES = st.integers(1, 10**9)


@given(st.lists(st.tuples(TIMES, TIMES), min_size=1, max_size=30), st.integers(0, 100))
def test_value_is_the_ratio_of_medians_and_lies_among_the_ratios(rounds: list[tuple[int, int]], seed: int) -> None:
    baseline, candidate = zip(*rounds, strict=True)
    ratio = ratio_of_medians([baseline], [candidate], seed=seed)
    assert ratio.value == pytest.approx(np.median(baseline) / np.median(candidate))
    assert min(baseline) / max(candidate) <= ratio.low * (1 + 1e-9)
    assert ratio.low <= ratio.high <= max(baseline) / min(candidate) * (1 + 1e-9)
    assert ratio == ratio_of_medians([baseline], [candidate], seed=seed)


def test_the_same_times_are_no_speed_up() -> None:
    times = np.random.default_rng(0).integers(1, 1000, 50).tolist()
    ratio = ratio_of_medians([times], [times])
    assert (ratio.value, ratio.low, ratio.high) == (1, 1, 1)


def test_noise_that_both_times_of_a_round_share_cancels() -> None:
    """A wandering clock: each time is worthless alone, the rounds are not."""
    rng = np.random.default_rng(1)
    weather = np.exp(rng.normal(0, 1, 100))
    noise = np.exp(rng.normal(0, 0.01, (2, 100)))
    baseline, candidate = (1e6 * 1.5 * weather * noise[0]).astype(int), (1e6 * weather * noise[1]).astype(int)
    paired = ratio_of_medians([baseline.tolist()], [candidate.tolist()])
    apart = ratio_of_medians([baseline.tolist()], [rng.permutation(candidate).tolist()])
    assert paired.low < 1.5 < paired.high
    assert paired.high - paired.low < 0.1
    assert apart.high - apart.low > 5 * (paired.high - paired.low)


def test_against_scipy() -> None:
    rng = np.random.default_rng(2)
    baseline, candidate = rng.gamma(50, 20_000, 80).astype(int), rng.gamma(50, 15_000, 80).astype(int)
    ours = ratio_of_medians([baseline.tolist()], [candidate.tolist()])
    theirs = stats.bootstrap(
        (baseline, candidate),
        lambda b, t, axis: np.median(b, axis=axis) / np.median(t, axis=axis),
        paired=True,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(3),
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_coverage() -> None:
    """Of 200 experiments with a true ratio of 1.2, about 95 % of the intervals hold it."""
    rng = np.random.default_rng(4)
    hits = 0
    for _ in range(200):
        times = np.exp(rng.normal(0, 0.2, (2, 60))) * [[1.2e6], [1e6]]
        ratio = ratio_of_medians(*([row] for row in times.astype(int).tolist()))
        hits += ratio.low <= 1.2 <= ratio.high
    assert hits >= 180


def test_openings_that_differ_by_themselves_are_no_speed_up() -> None:
    """The same engine, opened ten times on either side: where it lies in memory makes 5 %, rounds only 1 %."""
    rng = np.random.default_rng(5)
    false, blind = 0, 0
    for _ in range(100):
        place = np.exp(rng.normal(0, 0.05, (2, 10, 1)))
        times = (1e6 * place * np.exp(rng.normal(0, 0.01, (2, 10, 20)))).astype(int)
        both = ratio_of_medians(*times.tolist())
        false += not both.low <= 1 <= both.high
        rounds = ratio_of_medians(*times.reshape(2, 1, -1).tolist())
        blind += not rounds.low <= 1 <= rounds.high
    assert false <= 25
    assert blind > 2 * false


def test_openings_of_different_length_are_cut() -> None:
    ratio = ratio_of_medians([[4, 4, 9], [4, 4]], [[2, 2, 9], [2, 2]])
    assert (ratio.value, ratio.low, ratio.high) == (2, 2, 2)


@pytest.mark.parametrize(("baseline", "candidate"), [([], []), ([[]], [[]]), ([[1, 2]], [[1]]), ([[1]], [[1], [2]])])
def test_refusals(baseline: list[list[int]], candidate: list[list[int]]) -> None:
    with pytest.raises(ValueError, match=r"."):
        ratio_of_medians(baseline, candidate)

"""The speed-up of one engine over another, with a confidence interval.

The speed-up is the ratio of medians, ``r = median(b) / median(t)``, over rounds in which baseline and candidate ran one
after the other. Whatever slows a whole round down, such as a lower clock rate, is in both of its times.

Rounds are grouped into k openings. An engine that is opened again lies elsewhere in memory, which alone changed the
time of the same file by 5 % (medians of 2,000 rounds, three sessions of one net of 1.2 ms). The interval is therefore a
percentile bootstrap over both levels (Kalibera and Jones, Rigorous Benchmarking in Reasonable Time, ISMM 2013): draw k
openings with replacement; from each, draw as many rounds as it has, always with both times of a round; take the ratio
of medians. The middle 95 % of 2,000 such ratios are the interval.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trtkp.comparison.result import Ratio

__all__ = ["LEVEL", "ratio_of_medians"]

#: Confidence level of the interval.
LEVEL = 0.95
#: Bootstrap resamples: 50 of them lie beyond each end of the interval, enough for two digits of it.
_RESAMPLES = 2000


def ratio_of_medians(baseline: Sequence[Sequence[int]], candidate: Sequence[Sequence[int]], *, seed: int = 0) -> Ratio:
    """Compute the speed-up of a candidate over a baseline.

    Args:
        baseline: times [openings][rounds], in any unit. Openings of different length are cut to the shortest.
        candidate: times of the same rounds.
        seed: seed of the bootstrap.

    Raises:
        ValueError: there are no rounds, or the two have different numbers of times.

    Example:
        >>> ratio_of_medians([[20, 22, 21]], [[10, 11, 10.5]]).value
        2.0
    """
    pairs = [np.array(pair, np.float64) for pair in zip(baseline, candidate, strict=True)]  # ragged input raises
    rounds = min((pair.shape[1] for pair in pairs), default=0)
    if not rounds:
        raise ValueError("no rounds")
    times = np.stack([pair[:, :rounds] for pair in pairs], axis=1)  # [2, k, n]
    rng = np.random.default_rng(seed)
    openings = rng.integers(0, len(pairs), (_RESAMPLES, len(pairs), 1))
    drawn = times[:, openings, rng.integers(0, rounds, (_RESAMPLES, len(pairs), rounds))]
    medians = np.median(drawn.reshape(2, _RESAMPLES, -1), axis=2)
    low, high = np.quantile(medians[0] / medians[1], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    base, other = np.median(times.reshape(2, -1), axis=1)
    return Ratio(float(base / other), float(low), float(high))

"""How much faster, and how sure that is.

The speed-up is the ratio of medians, ``r = median(b) / median(t)``, over rounds in which baseline and candidate ran
next to each other. Rounds come in k openings: an engine that is opened anew lies elsewhere in memory, and that alone
changed the time of the very same file by 5 % (medians of 2,000 rounds, three sessions of one net of 1.2 ms). So the
interval is the percentile bootstrap over both levels (Kalibera and Jones, Rigorous Benchmarking in Reasonable Time,
ISMM 2013): draw k openings with replacement, then as many rounds as it has from each, always both times of a round;
take the ratio of medians; do so 2,000 times. The middle 95 % of these ratios are the interval. What slows a whole
round, a clock or a neighbour, is in both of its times.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trtkp.comparison.result import Ratio

__all__ = ["LEVEL", "ratio_of_medians"]

LEVEL = 0.95
_RESAMPLES = 2000


def ratio_of_medians(baseline: Sequence[Sequence[int]], candidate: Sequence[Sequence[int]], *, seed: int = 0) -> Ratio:
    """The speed-up of a candidate.

    Args:
        baseline: times [openings][rounds], in any unit; openings of different length are cut to the shortest.
        candidate: of the same rounds.
        seed: of the bootstrap.

    Raises:
        ValueError: no rounds, or not one time of each for every round.
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

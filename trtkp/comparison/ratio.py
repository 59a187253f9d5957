"""How much faster, and how sure that is.

The speed-up is the ratio of medians, ``r = median(b_1 ... b_n) / median(t_1 ... t_n)``, over n rounds in which baseline
and candidate ran next to each other. Its interval is the percentile bootstrap (Efron, 1979) over *rounds*: draw n
rounds with replacement, always both times of a round, take the ratio of medians, and do so 2,000 times; the interval
holds the middle 95 % of these ratios. What slows a whole round, a clock or a neighbour, is in both of its times.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trtkp.comparison.result import Ratio

__all__ = ["LEVEL", "ratio_of_medians"]

LEVEL = 0.95
_RESAMPLES = 2000


def ratio_of_medians(baseline: Sequence[int], candidate: Sequence[int], *, seed: int = 0) -> Ratio:
    """The speed-up of a candidate, from times of the same rounds in any one unit.

    Raises:
        ValueError: no times, or not one for each round.
    """
    times = np.array([baseline, candidate], np.float64)  # [2, n]; ragged input raises
    if not times.size:
        raise ValueError("no rounds")
    rounds = times.shape[1]
    drawn = np.random.default_rng(seed).integers(0, rounds, (_RESAMPLES, rounds))
    medians = np.median(times[:, drawn], axis=2)  # [2, resamples]
    low, high = np.quantile(medians[0] / medians[1], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    base, other = np.median(times, axis=1)
    return Ratio(float(base / other), float(low), float(high))

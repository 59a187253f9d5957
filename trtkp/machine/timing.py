"""Wall-clock timing of several callables against each other, in turn.

Timing A to the end and then B charges B for whatever the machine did in between: a clock that dropped, a neighbour that
woke up. Timed in turn, every callable meets the same weather, and their *ratio* is worth something even on a noisy
machine. The planner's choices and every figure that ``bench`` prints come from here.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

__all__ = ["MIN_RUNS", "Timing", "sample_interleaved", "time_interleaved"]

#: Timed rounds that are made even when the budget is spent: below three there is no median worth the name.
MIN_RUNS = 3


@dataclass(frozen=True)
class Timing:
    """Times of one callable, milliseconds of wall clock.

    Attributes:
        median_ms: the figure to compare by.
        p10_ms: 10th percentile, linearly interpolated.
        p90_ms: 90th percentile, linearly interpolated.
        runs: timed runs behind them; fewer than asked for when the budget ran out.
    """

    median_ms: float
    p10_ms: float
    p90_ms: float
    runs: int

    def gain_over(self, other: Timing) -> float:
        """How many times faster than ``other``, by the median or the 10th percentile, whichever says less.

        On a busy machine either may favour one of the two by chance, and seldom both.
        """
        return min(other.median_ms / self.median_ms, other.p10_ms / self.p10_ms)

    @classmethod
    def from_nanoseconds(cls, samples: list[int]) -> Timing:
        """The summary of at least one sample, each in nanoseconds."""
        p10, median, p90 = np.percentile(np.asarray(samples, dtype=np.float64) / 1e6, [10, 50, 90])
        return cls(float(median), float(p10), float(p90), len(samples))


def time_interleaved(
    calls: Mapping[str, Callable[[], object]], *, warmup: int, runs: int, budget_s: float | None
) -> dict[str, Timing]:
    """The summary of `sample_interleaved`: a ``Timing`` for each name, in the order of ``calls``."""
    samples = sample_interleaved(calls, warmup=warmup, runs=runs, budget_s=budget_s)
    return {name: Timing.from_nanoseconds(taken) for name, taken in samples.items()}


def sample_interleaved(
    calls: Mapping[str, Callable[[], object]], *, warmup: int, runs: int, budget_s: float | None
) -> dict[str, list[int]]:
    """Time callables in turn: A B C, B C A, C A B, ...

    The starting point moves on by one each round, so that no callable always runs first (after the loop's own work) or
    always behind the same neighbour (in the caches that it left). Garbage collection is off while timing.

    Args:
        calls: name to a callable that does one complete run and returns when it is done (a GPU call must synchronise).
        warmup: untimed rounds beforehand.
        runs: timed rounds.
        budget_s: seconds after which no new round starts, warm-up included; one warm-up round (if any was asked for)
            and ``min(runs, MIN_RUNS)`` timed ones are made all the same. None: no limit.

    Returns:
        Nanoseconds of each name's runs, in the order of ``calls``; the i-th runs of all are of one round.

    Raises:
        ValueError: no runs asked for, or a negative warm-up.
        Exception: whatever a callable raises.
    """
    if runs < 1 or warmup < 0:
        raise ValueError(f"runs = {runs} and warmup = {warmup}: at least one run and no negative warm-up")
    names = list(calls)
    samples: dict[str, list[int]] = {name: [] for name in names}
    start = time.perf_counter()

    def spent() -> bool:
        return budget_s is not None and time.perf_counter() - start >= budget_s

    with _no_garbage_collection():
        for done in range(warmup):
            if done and spent():
                break
            for name in names:
                calls[name]()
        for done in range(runs):
            if done >= MIN_RUNS and spent():
                break
            first = done % len(names) if names else 0
            for name in names[first:] + names[:first]:
                call = calls[name]
                before = time.perf_counter_ns()
                call()
                samples[name].append(time.perf_counter_ns() - before)
    return samples


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()

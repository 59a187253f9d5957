"""Wall-clock timing of several callables against each other, in alternation.

If A is timed to the end and then B, B pays for whatever the machine did in between, such as a lower clock or load from
other processes. In alternation every callable meets the same conditions, so their *ratio* is meaningful even on a noisy
machine. The planner's choices and all figures of ``trtkp bench`` come from here.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

__all__ = ["MIN_RUNS", "Timing", "sample_interleaved", "time_interleaved"]

#: Timed rounds that run even when the time limit has passed. With fewer than three, one outlier decides the median.
MIN_RUNS = 3


@dataclass(frozen=True)
class Timing:
    """The times of one callable, in milliseconds of wall-clock time.

    Attributes:
        median_ms: the figure to compare by.
        p10_ms: 10th percentile, linearly interpolated.
        p90_ms: 90th percentile, linearly interpolated.
        runs: number of timed runs, fewer than requested if the time limit passed.

    Example:
        >>> fast, slow = Timing(2.0, 1.5, 3.0, runs=30), Timing(4.0, 2.0, 5.0, runs=30)
        >>> round(fast.gain_over(slow), 2)  # the median says 2.0, the 10th percentile 1.33
        1.33
    """

    median_ms: float
    p10_ms: float
    p90_ms: float
    runs: int

    def gain_over(self, other: Timing) -> float:
        """How many times faster this is than ``other``, by the median or by the 10th percentile, whichever is less.

        On a busy machine each of the two may favour one callable by chance, but both seldom do.
        """
        return min(other.median_ms / self.median_ms, other.p10_ms / self.p10_ms)

    @classmethod
    def from_nanoseconds(cls, samples: list[int]) -> Timing:
        """The summary of one or more samples in nanoseconds."""
        p10, median, p90 = np.percentile(np.asarray(samples, dtype=np.float64) / 1e6, [10, 50, 90])
        return cls(float(median), float(p10), float(p90), len(samples))


def time_interleaved(
    calls: Mapping[str, Callable[[], object]], *, warmup: int, runs: int, time_limit_s: float | None
) -> dict[str, Timing]:
    """Time callables in alternation. A `Timing` for each name, in the order of ``calls``; see `sample_interleaved`."""
    samples = sample_interleaved(calls, warmup=warmup, runs=runs, time_limit_s=time_limit_s)
    return {name: Timing.from_nanoseconds(taken) for name, taken in samples.items()}


def sample_interleaved(
    calls: Mapping[str, Callable[[], object]], *, warmup: int, runs: int, time_limit_s: float | None
) -> dict[str, list[int]]:
    """Time callables in alternation: A B C, B C A, C A B, ...

    The first callable changes from round to round. So none always runs right after the loop's own work, or always with
    the caches that the same neighbour left. Garbage collection is off while timing.

    Args:
        calls: name to a callable. A call does one complete run and returns when it is done, so a GPU must synchronise.
        warmup: untimed rounds before the timed ones.
        runs: timed rounds.
        time_limit_s: seconds after which no new round starts, warm-up included. One warm-up round, if any is requested,
            and ``min(runs, MIN_RUNS)`` timed rounds run in any case. None means no limit.

    Returns:
        Nanoseconds of every run by name, in the order of ``calls``. Runs with the same position are of the same round.

    Raises:
        ValueError: ``runs`` is below 1, or ``warmup`` below 0.
        Exception: whatever a callable raises.
    """
    if runs < 1 or warmup < 0:
        raise ValueError(f"runs = {runs} and warmup = {warmup}: at least one run and no negative warm-up")
    names = list(calls)
    samples: dict[str, list[int]] = {name: [] for name in names}
    start = time.perf_counter()

    def passed() -> bool:
        return time_limit_s is not None and time.perf_counter() - start >= time_limit_s

    with _no_garbage_collection():
        for done in range(warmup):
            if done and passed():
                break
            for name in names:
                calls[name]()
        for done in range(runs):
            if done >= MIN_RUNS and passed():
                break
            first = done % len(names) if names else 0  # the callable that runs first in this round
            for name in names[first:] + names[:first]:
                call = calls[name]
                before = time.perf_counter_ns()
                call()
                samples[name].append(time.perf_counter_ns() - before)
    return samples


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    # A collection in the middle of a run would be charged to the callable that happens to run.
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()

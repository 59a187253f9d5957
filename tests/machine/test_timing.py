"""Interleaved timing: the order of the calls, the time limit, the percentiles."""

from __future__ import annotations

import gc
from collections.abc import Callable
from itertools import cycle

import pytest

from trtkp.machine import timing as timing_module
from trtkp.machine.timing import MIN_RUNS, Timing, time_interleaved


def test_calls_take_turns_and_the_first_one_rotates() -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "ABC"}
    timings = time_interleaved(calls, warmup=1, runs=4, time_limit_s=None)
    assert "".join(order) == "ABC" + "ABC" + "BCA" + "CAB" + "ABC"
    assert list(timings) == ["A", "B", "C"]
    assert {timing.runs for timing in timings.values()} == {4}


class Clock:
    """Stands still, but for what a call says that it took."""

    def __init__(self) -> None:
        self.now_ns = 0

    def perf_counter_ns(self) -> int:
        return self.now_ns

    def perf_counter(self) -> float:
        return self.now_ns / 1e9

    def taking(self, *milliseconds: int) -> Callable[[], None]:
        """A call that takes these times in turn."""
        times = cycle(milliseconds)

        def call() -> None:
            self.now_ns += next(times) * 1_000_000

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(timing_module, "time", fake)
    return fake


def test_each_call_has_its_own_times(clock: Clock) -> None:
    calls = {"slow": clock.taking(4), "fast": clock.taking(1), "uneven": clock.taking(2, 6)}
    timings = time_interleaved(calls, warmup=0, runs=5, time_limit_s=None)
    assert timings["slow"] == Timing(4.0, 4.0, 4.0, 5)
    assert timings["fast"] == Timing(1.0, 1.0, 1.0, 5)
    assert timings["uneven"] == Timing(2.0, 2.0, 6.0, 5)


def test_the_time_limit_ends_the_rounds_but_not_before_the_minimum(clock: Clock) -> None:
    timings = time_interleaved({"a": clock.taking(10)}, warmup=100, runs=1000, time_limit_s=0.0)
    assert timings["a"].runs == MIN_RUNS
    # one round of warm-up, then rounds until 70 ms are spent
    assert time_interleaved({"a": clock.taking(10)}, warmup=1, runs=1000, time_limit_s=0.07)["a"].runs == 6
    assert time_interleaved({"a": lambda: None}, warmup=0, runs=2, time_limit_s=0.0)["a"].runs == 2


def test_garbage_collection_is_off_while_timing_and_back_on_after_an_error() -> None:
    seen: list[bool] = []
    time_interleaved({"a": lambda: seen.append(gc.isenabled())}, warmup=0, runs=1, time_limit_s=None)
    assert seen == [False]
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        time_interleaved({"a": lambda: 1 // 0}, warmup=0, runs=1, time_limit_s=None)
    assert gc.isenabled()


def test_percentiles_are_interpolated() -> None:
    assert Timing.from_nanoseconds([1_000_000, 2_000_000, 3_000_000]) == Timing(2.0, 1.2, 2.8, 3)


def test_no_calls_and_bad_counts() -> None:
    assert time_interleaved({}, warmup=1, runs=1, time_limit_s=None) == {}
    with pytest.raises(ValueError, match="at least one run"):
        time_interleaved({}, warmup=0, runs=0, time_limit_s=None)

"""Interleaved timing: the order of the calls, the time limit, the percentiles."""

from __future__ import annotations

import gc
import time

import pytest

from trtkp.machine.timing import MIN_RUNS, Timing, time_interleaved


def test_calls_take_turns_and_the_first_one_rotates() -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "ABC"}
    timings = time_interleaved(calls, warmup=1, runs=4, time_limit_s=None)
    assert "".join(order) == "ABC" + "ABC" + "BCA" + "CAB" + "ABC"
    assert list(timings) == ["A", "B", "C"]
    assert {timing.runs for timing in timings.values()} == {4}


def test_slower_call_measures_slower() -> None:
    timings = time_interleaved(
        {"slow": lambda: time.sleep(0.004), "fast": lambda: None}, warmup=0, runs=5, time_limit_s=None
    )
    assert timings["slow"].median_ms >= 4 > timings["fast"].median_ms
    for timing in timings.values():
        assert timing.p10_ms <= timing.median_ms <= timing.p90_ms


def test_the_time_limit_ends_the_rounds_but_not_before_the_minimum() -> None:
    timings = time_interleaved({"a": lambda: time.sleep(0.01)}, warmup=100, runs=1000, time_limit_s=0.0)
    assert timings["a"].runs == MIN_RUNS
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

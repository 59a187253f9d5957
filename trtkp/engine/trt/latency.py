"""Latency of an engine in the terms of ``trtexec``, so that the two can be held against each other.

*GPU compute time* lies between an event before and one after the kernels; *H2D* and *D2H* are the copies of inputs and
outputs; *latency* is the sum of the three; *enqueue* is what the host needs to launch. Throughput is queries over the
wall clock of all of them. One query runs at a time here, so copies never overlap kernels: ``trtexec`` with
``--infStreams`` reports more queries per second.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from trtkp.engine.trt.context import RunTimes
from trtkp.machine.timing import Timing

__all__ = ["EngineLatency", "measure_latency"]

#: Of trtexec: warm-up and timed seconds, fewest runs.
WARMUP_S, SECONDS, RUNS = 0.2, 3.0, 10


@dataclass(frozen=True)
class EngineLatency:
    """Milliseconds on the GPU, with CUDA graphs or without; throughput in samples per second."""

    graphs: bool
    batch: int
    gpu: Timing
    h2d: Timing
    d2h: Timing
    latency: Timing
    enqueue: Timing
    throughput: float


def measure_latency(
    run: Callable[[], RunTimes],
    *,
    graphs: bool,
    batch: int,
    warmup_s: float = WARMUP_S,
    seconds: float = SECONDS,
    runs: int = RUNS,
) -> EngineLatency:
    """Run for ``seconds``, and at least ``runs`` times, after a warm-up.

    Args:
        run: one synchronised query; it says what it took.
        graphs: whether ``run`` replays a graph.
        batch: samples of a query.
        warmup_s: untimed seconds; at least two queries, after which a graph is captured.
        seconds: timed seconds.
        runs: fewest timed queries.
    """
    start, warm = time.perf_counter(), 0
    while warm < 2 or time.perf_counter() - start < warmup_s:
        run()
        warm += 1
    found: list[RunTimes] = []
    start = time.perf_counter()
    while len(found) < runs or time.perf_counter() - start < seconds:
        found.append(run())
    wall = time.perf_counter() - start

    def timing(name: str) -> Timing:
        return Timing.from_nanoseconds([round(getattr(times, name) * 1e6) for times in found])

    return EngineLatency(
        graphs=graphs,
        batch=batch,
        gpu=timing("gpu"),
        h2d=timing("h2d"),
        d2h=timing("d2h"),
        latency=timing("latency"),
        enqueue=timing("enqueue"),
        throughput=len(found) * batch / wall,
    )

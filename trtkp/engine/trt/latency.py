"""Measure the latency of an engine with the definitions of ``trtexec``, so that the figures can be compared.

*GPU compute time* is measured between an event before and an event after the kernels. *H2D* and *D2H* are the copies of
inputs and outputs. *Latency* is the sum of the three. *Enqueue time* is what the host needs to launch the kernels.
*Throughput* is the number of samples divided by the wall-clock time of all queries.

One query runs at a time, so copies never overlap kernels. ``trtexec --infStreams`` overlaps them and therefore reports
more queries per second.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from trtkp.engine.latency import EngineLatency
from trtkp.engine.trt.context import RunTimes
from trtkp.machine.timing import Timing

__all__ = ["measure_latency"]

#: Seconds of warm-up, seconds of measurement, and least number of queries: trtexec's defaults, for comparable figures.
WARMUP_S, SECONDS, RUNS = 0.2, 3.0, 10


def measure_latency(
    run: Callable[[], RunTimes],
    *,
    graphs: bool,
    batch: int,
    warmup_s: float = WARMUP_S,
    seconds: float = SECONDS,
    runs: int = RUNS,
) -> EngineLatency:
    """Measure for ``seconds``, and for at least ``runs`` queries, after a warm-up.

    Args:
        run: runs one query, waits for it, and returns its times.
        graphs: whether ``run`` replays a CUDA graph; recorded in the result.
        batch: samples per query.
        warmup_s: seconds of warm-up. It takes at least two queries, because a CUDA graph is captured at the second.
        seconds: seconds of measurement.
        runs: least number of measured queries.
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

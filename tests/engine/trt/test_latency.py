"""Latency in trtexec's terms, from runs that say what they took; Polygraphy's files of a comparison."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

import numpy as np
import pytest

from tests.engine.graphs import conv_net
from trtkp.engine.onnxruntime import OrtRunner
from trtkp.engine.trt.context import RunTimes
from trtkp.engine.trt.latency import measure_latency
from trtkp.verification.outputs import run_both


def test_medians_of_the_timed_runs_alone() -> None:
    warm = [RunTimes(100.0, 100.0, 100.0, 100.0)] * 2
    timed = cycle([RunTimes(1.0, 10.0, 2.0, 0.5), RunTimes(3.0, 30.0, 4.0, 0.7), RunTimes(2.0, 20.0, 3.0, 0.6)])
    runs = iter(warm)
    found = measure_latency(
        lambda: next(runs, None) or next(timed), graphs=True, batch=4, warmup_s=0.0, seconds=0.0, runs=9
    )
    assert (found.h2d.median_ms, found.gpu.median_ms, found.d2h.median_ms) == (2.0, 20.0, 3.0)
    assert (found.latency.median_ms, found.enqueue.median_ms) == (25.0, 0.6)
    assert (found.gpu.runs, found.graphs, found.batch) == (9, True, 4)


def test_throughput_is_of_the_wall_clock() -> None:
    import time

    ends: list[float] = []

    def run() -> RunTimes:
        time.sleep(0.01)
        ends.append(time.perf_counter())
        return RunTimes(0.0, 1.0, 0.0, 0.0)

    found = measure_latency(run, graphs=False, batch=2, warmup_s=0.0, seconds=0.1)
    assert found.gpu.runs >= 10
    assert len(ends) == found.gpu.runs + 2  # two to warm up
    assert found.throughput == pytest.approx(2 * found.gpu.runs / (ends[-1] - ends[1]), rel=0.5)


def test_polygraphy_keeps_what_both_sides_gave(tmp_path: Path) -> None:
    """Polygraphy and ONNX Runtime, really: one runner is ours, the other its own."""
    onnx = conv_net(tmp_path / "net.onnx")
    feeds = [{"image": np.full((batch, 3, 16, 16), batch, np.float32)} for batch in (1, 3)]
    with OrtRunner(onnx) as engine:
        pairs = run_both(engine, onnx, feeds)
    assert [found["y"].shape[0] for found, _ in pairs] == [1, 3]
    for found, wanted in pairs:
        np.testing.assert_allclose(found["y"], wanted["y"], rtol=1e-5)

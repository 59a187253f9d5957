"""Measure the numbers behind the CPU's cost model: rates of grouped convolutions, and the time of regrouping.

    python -m benchmarks.cpu.grouped --json benchmarks/results/grouped.json

Grouped convolutions have 3x3 kernels, 16 groups of 64 channels each, and 4 to 64 filters per group, on 14x14 inputs at
batch 8. They run alone in ONNX Runtime on 2 threads, in turn with a dense convolution of 256 filters and 256 channels,
and the figures are medians. Regrouping joins random lists of half of the channels, one per filter; the figure is the
fastest of five runs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from benchmarks.provenance import provenance
from trtkp.graph.save import session_source
from trtkp.machine.timing import time_interleaved
from trtkp.plan.lowerings import regroup

THREADS, BATCH, SIZE, CHANNELS, GROUPS = 2, 8, 14, 64, 16
FILTERS = (4, 8, 16, 32, 64)
LISTS = ((512, 512), (2048, 1024))


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    report = {"provenance": provenance(), "convolutions": _convolutions(), "regrouping": _regrouping()}
    print(json.dumps(report, indent=1))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def _convolutions() -> list[dict[str, Any]]:
    shapes = {"dense": (256, 256, 1), **{str(filters): (filters, CHANNELS, GROUPS) for filters in FILTERS}}
    timings = time_interleaved(
        {name: _run(*shape) for name, shape in shapes.items()}, warmup=5, runs=60, time_limit_s=60.0
    )  # fmt: skip
    rates = {
        name: BATCH * SIZE * SIZE * 9 * prod(shapes[name]) / timing.median_ms / 1e6 for name, timing in timings.items()
    }
    return [
        {
            "filters": name,
            "median_ms": round(timing.median_ms, 4),
            "gmacs_per_second": round(rates[name], 1),
            "of_dense": round(rates[name] / rates["dense"], 2),
        }
        for name, timing in timings.items()
    ]


def _run(filters: int, channels: int, groups: int) -> Callable[[], object]:
    """A function that runs a layer once; ``filters`` and ``channels`` are those of one group."""
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = THREADS
    with session_source(_model(filters, channels, groups)) as source:
        session = ort.InferenceSession(source, settings, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((BATCH, channels * groups, SIZE, SIZE), np.float32)
    return partial(session.run, None, {"x": x})


def _model(filters: int, channels: int, groups: int) -> onnx.ModelProto:
    weight = np.random.default_rng(1).standard_normal((filters * groups, channels, 3, 3), np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], group=groups, pads=[1, 1, 1, 1])], "grouped",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [BATCH, channels * groups, SIZE, SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [BATCH, filters * groups, SIZE, SIZE])],
        [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _regrouping() -> list[dict[str, Any]]:
    rows = []
    for filters, channels in LISTS:
        seconds = []
        for seed in range(5):
            kept = np.random.default_rng(seed).random((filters, channels)) < 0.5
            start = time.perf_counter()
            regroup.equal_groups(kept, 8)  # other lists every time, because the cluster trees of lists are cached
            seconds.append(time.perf_counter() - start)
        rows.append({"filters": filters, "channels": channels, "seconds": round(min(seconds), 4)})
    return rows


if __name__ == "__main__":
    main()

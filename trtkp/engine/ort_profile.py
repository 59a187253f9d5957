"""Time per node in ONNX Runtime: its profiler, read together with the graph that it really runs.

The session fuses nodes and puts reorders between them, so the profile's names are those of the optimised graph, which
the session writes beside it.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from trtkp.engine.base import EngineProfile, NodeTime
from trtkp.engine.onnxruntime import TRACED_GRAPH, OrtRunner

__all__ = ["profile"]

_SUFFIX = "_kernel_time"
#: Runs that are left out of the medians: the first ones allocate.
_WARMUP = 3


def profile(
    path: Path, feeds: Mapping[str, np.ndarray], *, threads: int | None = None, runs: int = 20
) -> EngineProfile:
    """Median time of every node over ``runs`` runs.

    Raises:
        InputError: no such file, or feeds that do not fit.
        JobError: ONNX Runtime refused the graph.
    """
    import onnx

    with tempfile.TemporaryDirectory(prefix="trtkp-profile-") as folder:
        with OrtRunner(path, threads=threads, trace=Path(folder)) as runner:
            for _ in range(_WARMUP + runs):
                runner.run(feeds)
            events = json.loads(runner.end_trace().read_text(encoding="utf-8"))
        graph = onnx.load(Path(folder) / TRACED_GRAPH, load_external_data=False).graph
    nodes = {node.name: node for node in graph.node if node.name}
    taken: dict[tuple[str, str], list[float]] = defaultdict(list)
    wholes = []
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX):
            taken[event["name"].removesuffix(_SUFFIX), event["args"]["op_name"]].append(event["dur"] / 1e3)
        elif event.get("name") == "model_run":
            wholes.append(event["dur"] / 1e3)
    times = []
    for (name, op), durations in taken.items():
        # several nodes without a name share an entry: their times of a run are added up
        per_run = np.reshape(durations, (_WARMUP + runs, -1)).sum(axis=1)[_WARMUP:]
        node = nodes.get(name)
        inputs, outputs = (tuple(node.input), tuple(node.output)) if node is not None else ((), ())
        times.append(NodeTime(name, op, inputs, outputs, float(np.median(per_run))))
    return EngineProfile(tuple(times), statistics.median(wholes[_WARMUP:]), runs)

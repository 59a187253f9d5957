"""What each further GPU target adds to a TensorRT-RTX engine: bytes, build seconds and peak memory. Needs no GPU.

    python -m benchmarks.cpu.rtx_targets --json benchmarks/results/rtx_targets.json

A net of 20 convolutions and 19.2 M parameters is built in fp16 for one target, for two, for the default ones and for
all, and in fp32 for one. Each figure is the median of the repeats. Memory is that of the build worker, with the
TensorRT-RTX library in it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.provenance import provenance
from tests.engine.graphs import conv_net, image_profile
from trtkp.engine import BuildRequest
from trtkp.engine.base import Precision
from trtkp.engine.trt.tensorrt_rtx import TensorRTRTXBackend

CHANNELS = (3, *[64] * 3, *[128] * 4, *[256] * 6, *[512] * 7)
ALL = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
CASES: tuple[tuple[Precision, tuple[str, ...]], ...] = (
    ("fp16", ("sm86",)),
    ("fp16", ("sm86", "sm89")),
    ("fp16", ()),
    ("fp16", ALL),
    ("fp32", ("sm86",)),
)


def measure(repeats: int) -> dict[str, Any]:
    """Measure all cases; gives the rows and their provenance."""
    rows = []
    version = ""
    with tempfile.TemporaryDirectory() as folder:
        for precision, targets in CASES:
            dtype = np.float16 if precision == "fp16" else np.float32
            graph = conv_net(Path(folder) / f"{precision}.onnx", CHANNELS, dtype=dtype, size=64)
            request = BuildRequest(graph, Path(folder), image_profile(64, (1, 8, 64)), precision, targets)
            results = [TensorRTRTXBackend().build(request) for _ in range(repeats)]
            version = results[0].version
            rows.append(
                {
                    "precision": precision,
                    "targets": results[0].targets,
                    "graph_bytes": graph.stat().st_size,
                    "engine_bytes": results[0].engine_bytes,
                    "seconds": round(statistics.median(r.seconds for r in results), 2),
                    "peak_mib": round(statistics.median((r.peak_bytes or 0) / 2**20 for r in results)),
                }
            )
    return {"provenance": provenance(), "tensorrt_rtx": version, "repeats": repeats, "rows": rows}


def main() -> None:
    """Measure and print; with ``--json`` write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    report = measure(options.repeats)
    for row in report["rows"]:
        print(
            f"{row['precision']}  {row['engine_bytes']:>10,} bytes  {row['seconds']:.2f} s  {row['peak_mib']} MiB  "
            f"{' '.join(row['targets'])}"
        )
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

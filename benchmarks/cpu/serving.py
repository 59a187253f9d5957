"""Measure a served model under load: batching, latency, 10,000 checked requests, overload and a killed worker.

    python -m benchmarks.cpu.serving --json benchmarks/results/serving.json

The model is the demo's CNN on 16 x 16 digits (random weights, KEP with n = 4 and one set of positions per layer) on
ONNX Runtime. Server, engine and clients share the machine's cores, so throughput is that of all of them together.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import trtkp
from benchmarks.provenance import provenance
from tests.serving.loads import DIGITS_SHAPE, build_digits, mixed_traffic, overload
from tests.serving.servers import Server, running
from trtkp.serving.server.load import LoadResult, measure_load

CLIENTS, REQUESTS, OVERLOAD_SECONDS = 32, 10_000, 60.0
QUIET = ("--log-level", "warning")


def main() -> None:
    """Build the model, serve it, put load on it, and print and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=8.0, help="seconds of each load")
    options = parser.parse_args()
    report: dict[str, Any] = {"provenance": provenance(), "load_average_before": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = build_digits(folder / "digits")
        report["engine"] = _engine(bundle)
        report["batching"] = _batching(folder, options.seconds)
        report["latency"] = _latency(folder, options.seconds)
        report["traffic"] = _traffic(folder)
        report["overload"] = _overload(folder)
        report["restart"] = _restart(folder)
    print(json.dumps(report, indent=1))
    report["load_average_after"] = os.getloadavg()[0]
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def _engine(bundle: trtkp.Bundle) -> dict[str, Any]:
    """Time the engine alone at several batch sizes: what batching can gain at most."""
    times = {batch: trtkp.bench([bundle], batch=batch, seconds=4)[0] for batch in (1, 8, 32, 64)}
    return {
        "median_ms": {batch: result.timing.median_ms for batch, result in times.items()},
        "rows_per_second": {batch: result.throughput for batch, result in times.items()},
    }


def _batching(folder: Path, seconds: float) -> dict[str, Any]:
    """Send requests of one row from many clients to a server with batching and to one without, in turn."""
    rows: dict[str, Any] = {}
    with (
        running(_made(folder / "a"), folder / "digits", *QUIET) as batched,
        running(_made(folder / "b"), folder / "digits", *QUIET, "--max-batch", "1") as single,
    ):
        for protocol in ("http", "grpc"):
            found: dict[str, list[float]] = {"batched": [], "single": []}
            for _ in range(3):
                for name, server in (("batched", batched), ("single", single)):
                    load = measure_load(_url(server, protocol), "digits", clients=CLIENTS, seconds=seconds / 3)
                    assert not load.errors
                    found[name].append(load.throughput)
            medians = {name: float(np.median(values)) for name, values in found.items()}
            rows[protocol] = {
                "clients": CLIENTS,
                "requests_per_second": medians,
                "all": found,
                "speed_up": medians["batched"] / medians["single"],
            }
        [stats] = batched.request("GET", "/v2/models/digits/stats").json()["model_stats"]
        rows["rows_per_run"] = stats["inference_count"] / stats["execution_count"]
    return rows


def _latency(folder: Path, seconds: float) -> list[dict[str, Any]]:
    """Measure latency in closed loops, and in an open loop at half the throughput of the best closed loop."""
    rows = []
    with running(_made(folder / "c"), folder / "digits", *QUIET) as server:
        for protocol in ("http", "grpc"):
            url, most = _url(server, protocol), 0.0
            for clients in (1, 8, CLIENTS):
                load = measure_load(url, "digits", clients=clients, seconds=seconds / 2)
                most = max(most, load.throughput)
                rows.append({"protocol": protocol, **_row(load)})
            load = measure_load(url, "digits", rate=most / 2, seconds=seconds)
            rows.append({"protocol": protocol, **_row(load)})
    return rows


def _traffic(folder: Path) -> dict[str, Any]:
    """Send requests of 1 to 64 rows from 16 clients, and check every answer."""
    pool = np.random.default_rng(0).standard_normal((256, *DIGITS_SHAPE), np.float32)
    with trtkp.load(folder / "digits") as bundle:
        expected = np.concatenate([bundle.run({"x": row[None]})["linear"] for row in pool])
    with running(_made(folder / "d"), folder / "digits", *QUIET) as server:
        done = mixed_traffic(server, "digits", "x", pool, expected, REQUESTS)
    assert done["wrong"] == [], done["wrong"][:5]
    return done


def _overload(folder: Path) -> dict[str, Any]:
    """Send three times as many requests as the server can answer."""
    with running(_made(folder / "e"), folder / "digits", *QUIET, "--queue", "32") as server:
        return overload(server, "digits", batch=16, seconds=OVERLOAD_SECONDS)


def _restart(folder: Path) -> dict[str, Any]:
    """Measure the seconds from the kill of an idle worker to the first answer of its successor."""
    with running(_made(folder / "f"), folder / "digits", *QUIET) as server:
        [worker] = server.workers
        start = time.perf_counter()
        worker.kill()
        while True:
            try:
                load = measure_load(server.url, "digits", clients=1, seconds=0.01)
            except trtkp.JobError:  # refused: there is no worker yet
                continue
            if load.requests:
                return {"seconds": time.perf_counter() - start}


def _made(path: Path) -> Path:
    path.mkdir()
    return path


def _url(server: Server, protocol: str) -> str:
    return server.url if protocol == "http" else f"grpc://{server.grpc}"


def _row(load: LoadResult) -> dict[str, Any]:
    return {
        "loop": load.loop,
        "clients": load.clients,
        "rate": load.rate,
        "requests_per_second": load.throughput,
        "latency_ms": load.latency_ms,
        "lag_ms": load.lag_ms,
        "errors": load.errors,
    }


if __name__ == "__main__":
    main()

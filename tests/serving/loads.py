"""Loads that tests and the benchmark put on a server, the model that bears them, and what came of it."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

import trtkp
from examples.nets import export, settle_batch_norm
from examples.nets.digits import digits_cnn
from tests.serving.servers import Server
from trtkp.serving.server.load import measure_load

__all__ = ["DIGITS_SHAPE", "build_digits", "mixed_traffic", "overload"]

SIZES = (1, 2, 3, 5, 8, 13, 32, 64)
DIGITS_SHAPE = (1, 16, 16)


def build_digits(target: Path) -> trtkp.Bundle:
    """The demo's CNN with random weights, KEP with one set of positions per layer: work enough for an engine."""
    torch.manual_seed(0)
    net = settle_batch_norm(digits_cnn(64), DIGITS_SHAPE)
    source = target.with_suffix(".pt2")
    torch.export.save(export(net, DIGITS_SHAPE), source)
    build = trtkp.BuildOptions(backend="onnxruntime", opt=["32x1x16x16"])
    return trtkp.build(source, target, method="kep", share="per-layer", options=build)


def mixed_traffic(
    server: Server, model: str, tensor: str, pool: np.ndarray, expected: np.ndarray, requests: int, clients: int = 16
) -> dict[str, Any]:
    """Requests of mixed sizes, rows drawn from a pool; every answer is compared with the rows that it should be for.

    Half of the clients use gRPC, half HTTP in binary. ``wrong`` lists what was lost, refused or another's.
    """
    wrong: list[str] = []
    latencies: list[float] = []
    rows_done: list[int] = []

    def client(number: int) -> None:
        rng = np.random.default_rng(number)
        module: Any = triton_grpc if number % 2 else triton_http
        with server.grpc_client() if number % 2 else server.http_client() as connection:
            for index in range(requests // clients):
                rows, name = rng.integers(0, len(pool), rng.choice(SIZES)), f"{number}-{index}"
                value = module.InferInput(tensor, [len(rows), *pool.shape[1:]], "FP32")
                value.set_data_from_numpy(pool[rows])
                start = time.perf_counter()
                try:
                    result = connection.infer(model, [value], request_id=name)
                except Exception as error:
                    wrong.append(f"{name}: {error}")
                    continue
                latencies.append((time.perf_counter() - start) * 1e3)
                response = result.get_response()
                outputs = response["outputs"] if isinstance(response, dict) else response.outputs
                output = outputs[0]["name"] if isinstance(response, dict) else outputs[0].name
                got = response["id"] if isinstance(response, dict) else response.id
                if got != name or not np.allclose(result.as_numpy(output), expected[rows], rtol=1e-3, atol=1e-4):
                    wrong.append(f"{name}: another request's answer ({got})")
                rows_done.append(len(rows))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    p50, p99 = np.percentile(latencies, [50, 99]) if latencies else (float("nan"),) * 2
    return {
        "requests": len(rows_done),
        "wrong": wrong,
        "p50_ms": float(p50),
        "p99_ms": float(p99),
        "requests_per_second": len(rows_done) / seconds,
        "rows_per_second": sum(rows_done) / seconds,
    }


def overload(server: Server, model: str, batch: int, seconds: float, factor: float = 3.0) -> dict[str, Any]:
    """So many times the capacity of a model, in an open loop; then the time until one request is as fast as before."""
    capacity = measure_load(server.url, model, batch=batch, clients=8, seconds=3)
    alone = measure_load(server.url, model, batch=batch, clients=1, seconds=1)
    memory, done = [], threading.Event()
    process = psutil.Process(server.process.pid)

    def watch() -> None:
        while not done.wait(0.2):
            memory.append(sum(part.memory_info().rss for part in (process, *process.children(recursive=True))))

    watcher = threading.Thread(target=watch)
    watcher.start()
    flood = measure_load(
        server.url, model, batch=batch, rate=factor * capacity.throughput, seconds=seconds, timeout_s=10
    )
    ended = time.perf_counter()
    while (after := measure_load(server.url, model, batch=batch, clients=1, seconds=0.1)).errors or (
        after.latency_ms["p50"] > 2 * alone.latency_ms["p50"] and time.perf_counter() - ended < 10
    ):
        pass
    recovery = time.perf_counter() - ended + max(0.0, flood.seconds - seconds)
    done.set()
    watcher.join()
    return {
        "capacity_per_second": capacity.throughput,
        "offered_per_second": factor * capacity.throughput,
        "seconds": seconds,
        "answered": flood.requests,
        "refused": flood.errors,
        "answered_ms": flood.latency_ms,
        "refused_ms": flood.error_ms,
        "generator_lag_ms": flood.lag_ms,
        "memory_quarter_mib": memory[len(memory) // 4] / 2**20,
        "memory_end_mib": memory[-1] / 2**20,
        "recovery_seconds": recovery,
    }

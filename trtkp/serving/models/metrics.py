"""The Prometheus metrics of a server."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from trtkp.machine.gpu import memory_used

__all__ = ["Metrics", "ModelMetrics"]

#: Bucket limits of the latency histograms in seconds, from one small layer on a GPU to the default time limit of 30 s.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """All metrics of one server.

    They live in a registry of their own, so that two servers in one process (as in the tests) do not share counters.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        labels = ("model", "version")
        self.requests = Counter(
            "trtkp_requests", "Requests by protocol and HTTP status", (*labels, "protocol", "status"),
            registry=registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "trtkp_request_seconds", "Time from request to answer", labels, buckets=_SECONDS, registry=registry
        )
        self.queue_seconds = Histogram(
            "trtkp_queue_seconds", "Time in the queue", labels, buckets=_SECONDS, registry=registry
        )
        self.compute_seconds = Histogram(
            "trtkp_compute_seconds", "Time of one run of the engine", labels, buckets=_SECONDS, registry=registry
        )
        self.batch_rows = Histogram("trtkp_batch_rows", "Rows per run", labels, buckets=_ROWS, registry=registry)
        self.restarts = Counter("trtkp_worker_restarts", "Workers that died", labels, registry=registry)
        self.queued = Gauge("trtkp_queue_requests", "Waiting requests", labels, registry=registry)
        self.ready = Gauge("trtkp_model_ready", "1 if the model is ready", labels, registry=registry)
        self.resident = Gauge("trtkp_worker_resident_bytes", "Resident memory of a worker", labels, registry=registry)
        self.bundle = Info(
            "trtkp_bundle", "The bundle that is served, by the SHA-256 of its manifest", labels, registry=registry
        )
        self._held = Gauge("trtkp_held_bytes", "Bytes of all requests and answers held", registry=registry)
        self._connections = Gauge("trtkp_connections", "Connections of both protocols", registry=registry)
        registry.register(_GpuMemory())

    def watch_memory(self, held: Callable[[], int]) -> None:
        """Set the function that tells how many bytes requests and answers hold."""
        self._held.set_function(held)

    def watch_connections(self, connections: Callable[[], int]) -> None:
        """Set the function that tells how many connections are open."""
        self._connections.set_function(connections)

    def forget(self, model: str, version: str) -> None:
        """Remove the gauges of a version that is no longer served; its counters stay, as Prometheus expects."""
        for family in (self.queued, self.ready, self.resident, self.bundle):
            with contextlib.suppress(KeyError):
                family.remove(model, version)

    def of(self, model: str, version: str) -> ModelMetrics:
        """The metrics of one version of a model."""
        return ModelMetrics(self, model, version)


class ModelMetrics:
    """The metrics of one version of a model, with the labels already bound."""

    def __init__(self, metrics: Metrics, model: str, version: str) -> None:
        self.seconds = metrics.seconds.labels(model, version)
        self.queue_seconds = metrics.queue_seconds.labels(model, version)
        self.compute_seconds = metrics.compute_seconds.labels(model, version)
        self.batch_rows = metrics.batch_rows.labels(model, version)
        self.restarts = metrics.restarts.labels(model, version)
        self._bundle = metrics.bundle.labels(model, version)
        self._gauges = [gauge.labels(model, version) for gauge in (metrics.queued, metrics.ready, metrics.resident)]

    def watch(
        self, queued: Callable[[], int], ready: Callable[[], bool], pid: Callable[[], int | None], digest: str
    ) -> None:
        """Set the functions that the gauges call whenever Prometheus reads them, and the digest of the bundle."""
        self._bundle.info({"digest": digest})
        readers = (queued, ready, lambda: _resident_bytes(pid()))
        for gauge, reader in zip(self._gauges, readers, strict=True):
            gauge.set_function(reader)


class _GpuMemory(Collector):
    """Memory used on every GPU by all processes, read from the driver whenever Prometheus asks."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily("trtkp_gpu_memory_used_bytes", "Memory used on a GPU", labels=("gpu",))
        for index, used in enumerate(memory_used()):
            family.add_metric((str(index),), used)
        yield family


def _resident_bytes(pid: int | None) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0

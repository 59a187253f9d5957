"""Prometheus metrics of a server."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from trtkp.machine.gpu import memory_used

__all__ = ["Metrics", "ModelMetrics"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """All metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        labels = ("model", "version")
        self.requests = Counter(
            "trtkp_requests", "Requests by protocol and HTTP status (or its like)", (*labels, "protocol", "status"),
            registry=registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "trtkp_request_seconds", "From the request to its answer", labels, buckets=_SECONDS, registry=registry
        )
        self.queue_seconds = Histogram(
            "trtkp_queue_seconds", "From the queue to an instance", labels, buckets=_SECONDS, registry=registry
        )
        self.compute_seconds = Histogram(
            "trtkp_compute_seconds", "One run of the engine", labels, buckets=_SECONDS, registry=registry
        )
        self.batch_rows = Histogram("trtkp_batch_rows", "Rows of a run", labels, buckets=_ROWS, registry=registry)
        self.restarts = Counter("trtkp_worker_restarts", "Workers that died", labels, registry=registry)
        self.queued = Gauge("trtkp_queue_requests", "Requests that wait", labels, registry=registry)
        self.ready = Gauge("trtkp_model_ready", "1 when the model answers", labels, registry=registry)
        self.resident = Gauge("trtkp_worker_resident_bytes", "Memory of a worker", labels, registry=registry)
        registry.register(_GpuMemory())

    def of(self, model: str, version: str) -> ModelMetrics:
        """Those of one model."""
        return ModelMetrics(self, model, version)


class ModelMetrics:
    """The metrics of one model and version, labels bound."""

    def __init__(self, metrics: Metrics, model: str, version: str) -> None:
        self.seconds = metrics.seconds.labels(model, version)
        self.queue_seconds = metrics.queue_seconds.labels(model, version)
        self.compute_seconds = metrics.compute_seconds.labels(model, version)
        self.batch_rows = metrics.batch_rows.labels(model, version)
        self.restarts = metrics.restarts.labels(model, version)
        self._gauges = [gauge.labels(model, version) for gauge in (metrics.queued, metrics.ready, metrics.resident)]

    def watch(self, queued: Callable[[], int], ready: Callable[[], bool], pid: Callable[[], int | None]) -> None:
        """Where gauges get their values, at every look."""
        readers = (queued, ready, lambda: _resident_bytes(pid()))
        for gauge, reader in zip(self._gauges, readers, strict=True):
            gauge.set_function(reader)


class _GpuMemory(Collector):
    """Memory in use on every GPU, by all processes."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily("trtkp_gpu_memory_used_bytes", "Memory in use on a GPU", labels=("gpu",))
        for index, used in enumerate(memory_used()):
            family.add_metric((str(index),), used)
        yield family


def _resident_bytes(pid: int | None) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0

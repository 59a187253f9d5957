"""The latency of an engine on a GPU, as `trtkp.engine.base.Backend.gpu_latency` reports it."""

from __future__ import annotations

from dataclasses import dataclass

from trtkp.machine.timing import Timing

__all__ = ["EngineLatency"]


@dataclass(frozen=True)
class EngineLatency:
    """Latency of an engine; the timings are in milliseconds, ``throughput`` in samples per second.

    Attributes:
        graphs: whether the engine was launched as a CUDA graph.
        batch: samples per query.
        gpu: time between the events before and after the kernels.
        h2d: copies of the inputs to the GPU.
        d2h: copies of the outputs from the GPU.
        latency: the sum of the three.
        enqueue: time that the host needs to launch the kernels.
        throughput: samples of all queries over their wall-clock time.
    """

    graphs: bool
    batch: int
    gpu: Timing
    h2d: Timing
    d2h: Timing
    latency: Timing
    enqueue: Timing
    throughput: float

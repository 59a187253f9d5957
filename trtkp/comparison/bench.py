"""``trtkp bench``: measure the latency of bundles.

Bundles are timed in turn, one run of each per round. Whatever slows a round down slows all of them, so the ratio of
their times holds even on a noisy machine. TensorRT engines are also timed as ``trtexec`` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Annotated

from trtkp.bundle import Bundle, load
from trtkp.engine import get_backend
from trtkp.engine.feeds import random_feeds
from trtkp.engine.options import DeviceNumber, RunOptions, Threads
from trtkp.errors import InputError
from trtkp.machine.gpu import check_gpu
from trtkp.machine.timing import Timing, time_interleaved
from trtkp.settings import Setting, check_values

if TYPE_CHECKING:
    from trtkp.engine.latency import EngineLatency
    from trtkp.shapes import Shape

__all__ = ["BenchResult", "bench"]

#: Seconds for which a TensorRT engine is timed by GPU events, without and with CUDA graphs each: trtexec's default.
GPU_SECONDS = 3.0


@dataclass(frozen=True)
class BenchResult:
    """The latency of one bundle at one batch size."""

    bundle: str
    backend: str
    precision: str
    batch: int
    threads: int | None
    timing: Timing
    gpu: tuple[EngineLatency, ...] = ()
    """For a TensorRT engine: its latency without CUDA graphs and, where they can be captured, with them."""

    @property
    def throughput(self) -> float:
        """Samples per second at the median latency."""
        return self.batch / self.timing.median_ms * 1e3


def bench(
    bundles: Sequence[str | PathLike[str] | Bundle],
    *,
    batch: Annotated[
        int | None, Setting("Batch size.", ge=1, default="the usual one of the first bundle; 1 with --load")
    ] = None,
    threads: Threads = None,
    device: DeviceNumber = 0,
    warmup: Annotated[int, Setting("Untimed rounds.", ge=0)] = 10,
    runs: Annotated[int, Setting("Timed rounds; fewer when the seconds are over.", ge=1)] = 100,
    seconds: Annotated[float | None, Setting("Seconds that all rounds, or the load, may take.", gt=0)] = 20.0,
) -> list[BenchResult]:
    """Measure the latency of bundles on random inputs, in turn.

    Args:
        bundles: bundles or their directories.
        batch: batch size; None for the first bundle's typical one (``opt`` of its profile).
        threads: CPU threads of ONNX Runtime; None for the number of physical cores.
        device: number of the GPU that runs TensorRT engines.
        warmup: number of untimed rounds.
        runs: number of timed rounds; fewer if ``seconds`` have passed.
        seconds: time limit of all rounds together; None for no limit.

    Returns:
        One result per bundle, in the order given.

    Raises:
        InputError: there is no bundle, one is named twice, the batch is outside a profile, a count is below
            one, or there is no such GPU.
        NotRunnableError: an engine cannot run on this machine.

    Example:
        >>> import trtkp
        >>> dense, pruned = trtkp.bench(["dense", "kep"], batch=4, runs=5)
        >>> speed_up = dense.timing.median_ms / pruned.timing.median_ms
        >>> dense.batch, dense.timing.runs
        (4, 5)
    """
    given = {"batch": batch, "threads": threads, "device": device, "warmup": warmup, "runs": runs, "seconds": seconds}
    check_values(bench, given)
    check_gpu(device)
    opened = [item if isinstance(item, Bundle) else load(item) for item in bundles]
    if not opened:
        raise InputError("no bundle to time")
    size = batch if batch is not None else _usual_batch(opened[0])
    names = [str(bundle.path) for bundle in opened]
    if len(set(names)) != len(names):
        raise InputError("the same bundle is named twice")
    with ExitStack() as stack:
        calls, used, gpu = {}, {}, {}
        for name, bundle in zip(names, opened, strict=True):
            shapes = _shapes(bundle, size)
            runner = stack.enter_context(bundle.open(threads=threads, options=RunOptions(device=device)))
            feeds = random_feeds(runner.inputs, shapes, seed=0)
            calls[name] = lambda runner=runner, feeds=feeds: runner.run(feeds)
            used[name] = runner.threads
            backend = get_backend(bundle.manifest.backend)
            gpu[name] = partial(backend.gpu_latency, runner, feeds, batch=size, seconds=GPU_SECONDS)
        timings = time_interleaved(calls, warmup=warmup, runs=runs, time_limit_s=seconds)
        latencies = {name: measure() for name, measure in gpu.items()}
    return [
        BenchResult(
            name, bundle.manifest.backend, bundle.manifest.precision, size, used[name], timings[name], latencies[name]
        )
        for name, bundle in zip(names, opened, strict=True)
    ]


def _batched(bundle: Bundle) -> list[str]:
    """Inputs whose first dimension is the batch: those where it is dynamic or, if it is nowhere dynamic, all."""
    inputs = [record for record in bundle.manifest.inputs if record.shape]
    dynamic = [record.name for record in inputs if isinstance(record.shape[0], str)]
    return dynamic or [record.name for record in inputs]


def _usual_batch(bundle: Bundle) -> int:
    return next((bundle.manifest.profile[name]["opt"][0] for name in _batched(bundle)), 1)


def _shapes(bundle: Bundle, batch: int) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {name: tuple(limits["opt"]) for name, limits in bundle.manifest.profile.items()}
    for name in _batched(bundle):
        limits = bundle.manifest.profile[name]
        low, high = limits["min"][0], limits["max"][0]
        if not low <= batch <= high:
            raise InputError(f"batch {batch} is outside {low}..{high}, the profile of input {name}", file=bundle.path)
        shapes[name] = (batch, *shapes[name][1:])
    return shapes

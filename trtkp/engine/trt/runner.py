"""Run engines of TensorRT and TensorRT-RTX, with as many runs in progress as there are execution contexts."""

from __future__ import annotations

import statistics
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trtkp.cuda.arrays import View, view
from trtkp.cuda.device import Device, open_device
from trtkp.engine.base import EngineProfile, NodeTime
from trtkp.engine.feeds import check_feeds
from trtkp.engine.options import RunOptions
from trtkp.engine.trt.context import Context, Engine, Feed, RunTimes
from trtkp.engine.trt.layers import EngineLayer, read_layers
from trtkp.errors import InputError
from trtkp.machine.processes import Closing
from trtkp.shapes import Shape

__all__ = ["TrtEngineRunner"]

#: Runs left out of a profile's medians: the first ones allocate memory.
_WARMUP = 3

#: Alignment in bytes that TensorRT's ``setTensorAddress`` requires.
_ALIGNMENT = 256


class TrtEngineRunner(Closing):
    """An engine on a GPU. Several threads may run it at once; each waits for a free context.

    Inputs are NumPy arrays, or contiguous objects with ``__cuda_array_interface__`` (such as PyTorch's CUDA tensors),
    which are read in place.

    Args:
        path: the serialised engine.
        trt: the imported module: ``tensorrt``, ``tensorrt_lean`` or ``tensorrt_rtx``.
        options: contexts, CUDA graphs, host code, refitting and the GPU.
        plugins: plugin library that the engine may need.
        device: the GPU; None for the one of ``options``.

    Raises:
        InputError: fewer than one context was requested.
        NotRunnableError: neither pycuda nor cuda-bindings is installed.
        JobError: TensorRT refused the engine.
    """

    threads: int | None = None

    def __init__(
        self,
        path: Path,
        trt: Any,
        *,
        options: RunOptions | None = None,
        plugins: Path | None = None,
        device: Device | None = None,
    ) -> None:
        self.options = options or RunOptions()
        if self.options.contexts < 1:
            raise InputError(f"{self.options.contexts} contexts: at least one is needed")
        self._engine = Engine(
            trt,
            path,
            device or open_device(self.options.device),
            plugins=plugins,
            allow_host_code=self.options.allow_host_code,
            refit_from=self.options.refit_from,
        )
        self.inputs, self.outputs = self._engine.inputs, self._engine.outputs
        self._free = [self._engine.create_context() for _ in range(self.options.contexts)]
        self._changed = threading.Condition()
        self._open = True

    def run(self, feeds: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
        """Run one inference; see `Runner.run`."""
        return self._run(feeds, graphs=self.options.graphs)[0]

    def timed(self, feeds: Mapping[str, Any], *, graphs: bool) -> RunTimes:
        """Run one inference and return its times; ``graphs`` replays a CUDA graph from the second run on."""
        return self._run(feeds, graphs=graphs)[1]

    @property
    def why_no_graphs(self) -> str | None:
        """Why CUDA graphs cannot be captured here; None where they can."""
        return self._engine.device.why_no_graphs

    def profile(self, feeds: Mapping[str, Any], runs: int) -> EngineProfile:
        """Measure the median time of every layer over ``runs`` runs with TensorRT's ``IProfiler``.

        Profiling slows a run, so it uses a context of its own.
        """
        trt: Any = self._engine.trt
        taken: dict[str, list[float]] = defaultdict(list)

        class Profiler(trt.IProfiler):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.IProfiler.__init__(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                taken[layer_name].append(ms)

        known = {layer.name: layer for layer in read_layers(self._engine)}
        # A context of its own: a profiler stays attached to its context and would slow all later runs.
        context = self._engine.create_context()
        wholes = []
        try:
            context.handle.profiler = Profiler()
            checked, streams = self._checked(feeds)
            for number in range(_WARMUP + runs):
                if number == _WARMUP:
                    taken.clear()
                _, times = context.run(checked, streams)
                if number >= _WARMUP:
                    wholes.append(times.gpu)
        finally:
            context.close()
        nodes = (_node(known.get(name) or EngineLayer(name), times) for name, times in taken.items())
        return EngineProfile(tuple(nodes), statistics.median(wholes), runs)

    def close(self) -> None:
        """Wait for the runs in progress, then free the contexts and their GPU memory."""
        with self._changed:
            if not self._open:
                return
            self._open = False
            self._changed.notify_all()  # threads that wait for a context get an error
            self._changed.wait_for(lambda: len(self._free) == self.options.contexts)
            for context in self._free:
                context.close()
            self._free.clear()
        self._engine.close()

    def _run(self, feeds: Mapping[str, Any], *, graphs: bool) -> tuple[dict[str, npt.NDArray[Any]], RunTimes]:
        checked, streams = self._checked(feeds)
        with self._context({name: tuple(feed.shape) for name, feed in checked.items()}) as context:
            return context.run(checked, streams, graphs=graphs)

    @contextmanager
    def _context(self, shapes: Mapping[str, Shape]) -> Iterator[Context]:
        """Take a free context: one whose last run had these shapes (its CUDA graph fits), or else the longest idle."""
        with self._changed:
            self._changed.wait_for(lambda: self._free or not self._open)
            if not self._open:
                raise ValueError("the runner is closed")
            chosen = next((context for context in self._free if context.holds(shapes)), self._free[0])
            self._free.remove(chosen)
        try:
            yield chosen
        finally:
            with self._changed:
                self._free.append(chosen)
                self._changed.notify_all()  # wakes the runs that wait for a context, and close()

    def _checked(self, feeds: Mapping[str, Any]) -> tuple[dict[str, Feed], dict[str, int]]:
        """Check the inputs. Returns them, and for device memory the CUDA streams that write it."""
        interfaces = {
            name: feed.__cuda_array_interface__
            for name, feed in feeds.items()
            if not isinstance(feed, np.ndarray) and hasattr(feed, "__cuda_array_interface__")
        }
        views = {name: view(feeds[name], f"input {name}") for name in interfaces}
        for name, found in views.items():
            _require_readable(found)
            _require_here(feeds[name], found.name, self.options.device)
        streams = {name: _stream(feeds[name], interface) for name, interface in interfaces.items()}
        known = {name: stream for name, stream in streams.items() if stream is not None}
        return check_feeds(self.inputs, {**feeds, **views}), known


def _require_readable(found: View) -> None:
    if not found.contiguous:
        raise InputError(
            f"{found.name} {list(found.shape)} with strides {list(found.strides)} is not contiguous",
            remedy="pass x.contiguous()",
        )
    if found.address % _ALIGNMENT:
        raise InputError(
            f"{found.name} begins {found.address % _ALIGNMENT} bytes after a multiple of {_ALIGNMENT}, but TensorRT "
            f"needs tensors aligned to {_ALIGNMENT} bytes",
            remedy="pass x.clone(), which is aligned",
        )


def _require_here(feed: Any, name: str, device: int) -> None:
    """Refuse a tensor on another GPU, which the engine could not read. PyTorch's tensors alone say where they are."""
    index = getattr(getattr(feed, "device", None), "index", None)
    if isinstance(index, int) and index != device:
        raise InputError(f"{name} is on GPU {index}, the engine on GPU {device}", remedy=f'pass x.to("cuda:{device}")')


def _stream(feed: Any, interface: Mapping[str, Any]) -> int | None:
    """The CUDA stream that writes an input in device memory; None if the data is valid already.

    Version 2 of the interface, which PyTorch implements, has no stream: for PyTorch it is the library's current stream.
    Other libraries without the field conventionally use the legacy default stream, whose number is 1.
    """
    if "stream" not in interface and type(feed).__module__.partition(".")[0] == "torch":
        import torch

        return torch.cuda.current_stream(feed.device).cuda_stream or 1
    stream = interface.get("stream", 1)
    return None if stream is None else int(stream)


def _node(layer: EngineLayer, times: list[float]) -> NodeTime:
    return NodeTime(layer.name, layer.op, layer.inputs, layer.outputs, statistics.median(times))

"""A stand-in for a GPU: host memory, streams that do nothing until somebody waits, a record of every call.

Work that is sent to a stream runs when the stream is synchronised, so results that are read too early are wrong here as
they are on a GPU. What is sent while a stream captures goes into the graph instead.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import local
from typing import Any

import numpy as np

from trtkp.cuda.device import Device, DeviceMemory
from trtkp.errors import JobError

__all__ = ["DeviceArray", "RecordingDevice", "Stream", "stream_of"]

Work = Callable[[], None]

_STREAMS: dict[int, Stream] = {}


class Stream:
    """Work in order; ``captured`` is a list while it captures."""

    def __init__(self) -> None:
        self.handle = len(_STREAMS) + 0x1000
        self.work: list[Work] = []
        self.captured: list[Work] | None = None
        _STREAMS[self.handle] = self

    def submit(self, work: Work) -> None:
        (self.work if self.captured is None else self.captured).append(work)

    def run(self) -> None:
        if self.captured is not None:
            raise JobError("cuStreamSynchronize: CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED")
        work, self.work = self.work, []
        for each in work:
            each()


def stream_of(handle: int) -> Stream:
    """The stream of a handle, as TensorRT gets it."""
    return _STREAMS[handle]


class RecordingDevice(Device):
    """See the module. ``calls`` are the names of what was done, ``live`` the bytes that are allocated."""

    name = "recording"

    def __init__(self, index: int = 0, *, why_no_graphs: str | None = None) -> None:
        self.calls: list[str] = []
        self.live = 0
        self.waits: list[int] = []
        self._why_no_graphs = why_no_graphs
        self._clock = 0.0
        self._current = local()

    @property
    def why_no_graphs(self) -> str | None:
        return self._why_no_graphs

    @contextmanager
    def current(self) -> Iterator[None]:
        self._current.depth = getattr(self._current, "depth", 0) + 1
        try:
            yield
        finally:
            self._current.depth -= 1

    def _call(self, name: str) -> None:
        assert getattr(self._current, "depth", 0) > 0, f"{name} without the context"
        self.calls.append(name)

    def allocate(self, nbytes: int) -> DeviceMemory:
        self._call("allocate")
        block = np.full(max(1, nbytes), 0xCD, np.uint8)
        self.live += nbytes

        def release() -> None:
            nonlocal block
            del block
            self.live -= nbytes

        return DeviceMemory(block.ctypes.data, nbytes, release)

    def pinned(self, nbytes: int) -> np.ndarray[Any, Any]:
        self._call("pinned")
        return np.full(nbytes, 0xCD, np.uint8)

    def create_stream(self) -> Stream:
        self._call("create_stream")
        return Stream()

    def stream_handle(self, stream: Stream) -> int:
        return stream.handle

    def synchronize(self, stream: Stream) -> None:
        self._call("synchronize")
        stream.run()

    def create_event(self) -> dict[str, float]:
        self._call("create_event")
        return {}

    def record(self, event: dict[str, float], stream: Stream) -> None:
        def happen() -> None:
            self._clock += 1.0
            event["at"] = self._clock

        stream.submit(happen)

    def elapsed_ms(self, start: dict[str, float], end: dict[str, float]) -> float:
        return end["at"] - start["at"]

    def wait_for(self, stream: Stream, other: int) -> None:
        self._call("wait_for")
        self.waits.append(other)

    def copy_in(self, address: int, host: np.ndarray[Any, Any], stream: Stream) -> None:
        self._call("copy_in")
        stream.submit(lambda: ctypes.memmove(address, host.ctypes.data, host.nbytes) and None)

    def copy_out(self, host: np.ndarray[Any, Any], address: int, stream: Stream) -> None:
        self._call("copy_out")
        stream.submit(lambda: ctypes.memmove(host.ctypes.data, address, host.nbytes) and None)

    def begin_capture(self, stream: Stream) -> None:
        self._call("begin_capture")
        assert stream.captured is None
        stream.captured = []

    def end_capture(self, stream: Stream) -> list[Work]:
        self._call("end_capture")
        graph, stream.captured = stream.captured, None
        assert graph is not None
        return graph

    def abandon_capture(self, stream: Stream) -> None:
        self._call("abandon_capture")
        stream.captured = None

    def launch(self, graph: list[Work], stream: Stream) -> None:
        self._call("launch")
        for work in graph:
            stream.submit(work)


class DeviceArray:
    """What another library has on the device: an array that shows itself through ``__cuda_array_interface__`` alone.

    A contiguous one begins ``offset`` bytes behind a multiple of 256, as memory of an allocator does.
    """

    def __init__(self, array: np.ndarray[Any, Any], *, offset: int = 0, **more: Any) -> None:
        if array.flags.c_contiguous:
            block = np.empty(array.nbytes + offset + 256, np.uint8)
            start = -block.ctypes.data % 256 + offset
            place = block[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
            place[...] = array
            array = place
        self._array = array
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (array.ctypes.data, False),
            "strides": None if array.flags.c_contiguous else array.strides,
            "version": 3,
            **more,
        }

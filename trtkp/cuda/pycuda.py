"""The GPU through pycuda. *Unverified*: pycuda is compiled against a CUDA toolkit, and none was available."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from trtkp.cuda.device import Device, DeviceMemory
from trtkp.machine.packages import importable

try:
    import pycuda.driver as cuda
except ImportError:  # `open_device` asks first whether it is installed
    cuda = None

__all__ = ["PyCudaDevice"]


class PyCudaDevice(Device):
    """See `Device`. pycuda has no CUDA graphs, so they come from cuda-bindings if that is installed too."""

    name: ClassVar[str] = "pycuda"

    def __init__(self, index: int = 0) -> None:
        cuda.init()
        self._context = cuda.Device(index).retain_primary_context()

    @property
    def why_no_graphs(self) -> str | None:
        """A reason unless cuda-bindings is installed too."""
        return (
            None if importable("cuda.bindings") else "pycuda captures no CUDA graphs: pip install cuda-bindings as well"
        )

    @contextmanager
    def current(self) -> Iterator[None]:
        """See `Device.current`."""
        self._context.push()
        try:
            yield
        finally:
            self._context.pop()

    def allocate(self, nbytes: int) -> DeviceMemory:
        """See `Device.allocate`."""
        memory = cuda.mem_alloc(max(1, nbytes))
        return DeviceMemory(int(memory), nbytes, memory.free)

    def pinned(self, nbytes: int) -> npt.NDArray[np.uint8]:
        """See `Device.pinned`."""
        array: npt.NDArray[np.uint8] = cuda.pagelocked_empty(max(1, nbytes), np.uint8)[:nbytes]
        return array

    def create_stream(self) -> Any:
        """See `Device.create_stream`. The flag 1 is ``CU_STREAM_NON_BLOCKING``."""
        return cuda.Stream(1)

    def stream_handle(self, stream: Any) -> int:
        """See `Device.stream_handle`."""
        return int(stream.handle)

    def synchronize(self, stream: Any) -> None:
        """See `Device.synchronize`."""
        stream.synchronize()

    def create_event(self) -> Any:
        """See `Device.create_event`."""
        return cuda.Event()

    def record(self, event: Any, stream: Any) -> None:
        """See `Device.record`."""
        event.record(stream)

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """See `Device.elapsed_ms`."""
        return float(start.time_till(end))

    def wait_for(self, stream: Any, other: int) -> None:
        """Wait for everything in the context: pycuda cannot wait for a stream that it has not created."""
        self._context.synchronize()

    def copy_in(self, address: int, host: npt.NDArray[Any], stream: Any) -> None:
        """See `Device.copy_in`."""
        cuda.memcpy_htod_async(address, host, stream)

    def copy_out(self, host: npt.NDArray[Any], address: int, stream: Any) -> None:
        """See `Device.copy_out`."""
        cuda.memcpy_dtoh_async(host, address, stream)

    def begin_capture(self, stream: Any) -> None:
        """See `Device.begin_capture`."""
        _graphs().begin(int(stream.handle))

    def end_capture(self, stream: Any) -> Any:
        """See `Device.end_capture`."""
        return _graphs().end(int(stream.handle))

    def abandon_capture(self, stream: Any) -> None:
        """See `Device.abandon_capture`."""
        _graphs().abandon(int(stream.handle))

    def launch(self, graph: Any, stream: Any) -> None:
        """See `Device.launch`."""
        _graphs().launch(graph, int(stream.handle))


def _graphs() -> Any:
    from trtkp.cuda.cuda_python import CudaGraphs

    return CudaGraphs

"""The GPU through the driver bindings of cuda-python (package ``cuda-bindings``)."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from trtkp.cuda.device import Device, DeviceMemory
from trtkp.errors import JobError

try:
    from cuda.bindings import driver
except ImportError:  # `open_device` asks first whether it is installed
    driver = None

__all__ = ["CudaGraphs", "CudaPythonDevice", "call"]


def call(function: Any, *arguments: Any) -> Any:
    """Call a driver function and return its values without the status.

    Raises:
        JobError: the call failed. The message has CUDA's name of the error.
    """
    status, *values = function(*arguments)
    if status != driver.CUresult.CUDA_SUCCESS:
        raise JobError(f"{function.__name__}: {status.name}")
    return values[0] if len(values) == 1 else tuple(values)


class CudaGraphs:
    """Capture and replay of CUDA graphs on a raw stream, whichever package made the stream."""

    @staticmethod
    def begin(stream: int) -> None:
        """Begin to capture. The mode is thread-local, so other threads may allocate and synchronise in the meantime."""
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        call(driver.cuStreamBeginCapture, driver.CUstream(stream), mode)

    @staticmethod
    def end(stream: int) -> Any:
        """End the capture; returns the graph, instantiated."""
        graph = call(driver.cuStreamEndCapture, driver.CUstream(stream))
        try:
            return _Executable(call(driver.cuGraphInstantiate, graph, 0))
        finally:
            call(driver.cuGraphDestroy, graph)

    @staticmethod
    def abandon(stream: int) -> None:
        """End a capture and discard its graph; never raises."""
        with suppress(Exception):  # ending an invalid capture is an error, and an invalid one is why this is called
            status, graph = driver.cuStreamEndCapture(driver.CUstream(stream))
            if status == driver.CUresult.CUDA_SUCCESS and int(graph):
                driver.cuGraphDestroy(graph)

    @staticmethod
    def launch(graph: Any, stream: int) -> None:
        """Launch a graph on a stream."""
        call(driver.cuGraphLaunch, graph.handle, driver.CUstream(stream))


class _Executable:
    def __init__(self, handle: Any) -> None:
        self.handle = handle

    def __del__(self) -> None:
        with suppress(Exception):  # the driver may be gone before Python is
            driver.cuGraphExecDestroy(self.handle)


class CudaPythonDevice(Device):
    """See `Device`.

    Raises:
        JobError: there is no driver, or no GPU of this index.
    """

    name: ClassVar[str] = "cuda-bindings"

    def __init__(self, index: int = 0) -> None:
        call(driver.cuInit, 0)
        self._device = call(driver.cuDeviceGet, index)
        self._context = call(driver.cuDevicePrimaryCtxRetain, self._device)

    @property
    def why_no_graphs(self) -> str | None:
        """Always None: cuda-bindings captures graphs."""
        return None

    @contextmanager
    def current(self) -> Iterator[None]:
        """See `Device.current`."""
        call(driver.cuCtxPushCurrent, self._context)
        try:
            yield
        finally:
            call(driver.cuCtxPopCurrent)

    def allocate(self, nbytes: int) -> DeviceMemory:
        """See `Device.allocate`."""
        address = call(driver.cuMemAlloc, max(1, nbytes))

        def release() -> None:
            with self.current():
                driver.cuMemFree(address)

        return DeviceMemory(int(address), nbytes, release)

    def pinned(self, nbytes: int) -> npt.NDArray[np.uint8]:
        """See `Device.pinned`."""
        owner = _Pinned(self, call(driver.cuMemHostAlloc, max(1, nbytes), 0))
        buffer: Any = (ctypes.c_uint8 * max(1, nbytes)).from_address(int(owner.handle))
        buffer.owner = owner  # the array keeps the buffer alive, and the buffer keeps the memory
        return np.frombuffer(buffer, np.uint8, nbytes)

    def create_stream(self) -> Any:
        """See `Device.create_stream`."""
        return _Stream(self, call(driver.cuStreamCreate, driver.CUstream_flags.CU_STREAM_NON_BLOCKING))

    def stream_handle(self, stream: Any) -> int:
        """See `Device.stream_handle`."""
        return int(stream.handle)

    def synchronize(self, stream: Any) -> None:
        """See `Device.synchronize`."""
        call(driver.cuStreamSynchronize, stream.handle)

    def create_event(self) -> Any:
        """See `Device.create_event`."""
        return _Event(self, call(driver.cuEventCreate, driver.CUevent_flags.CU_EVENT_DEFAULT))

    def record(self, event: Any, stream: Any) -> None:
        """See `Device.record`."""
        call(driver.cuEventRecord, event.handle, stream.handle)

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """See `Device.elapsed_ms`."""
        return float(call(driver.cuEventElapsedTime, start.handle, end.handle))

    def wait_for(self, stream: Any, other: int) -> None:
        """See `Device.wait_for`."""
        event = self.create_event()
        call(driver.cuEventRecord, event.handle, driver.CUstream(other))
        call(driver.cuStreamWaitEvent, stream.handle, event.handle, 0)

    def copy_in(self, address: int, host: npt.NDArray[Any], stream: Any) -> None:
        """See `Device.copy_in`."""
        call(driver.cuMemcpyHtoDAsync, driver.CUdeviceptr(address), host.ctypes.data, host.nbytes, stream.handle)

    def copy_out(self, host: npt.NDArray[Any], address: int, stream: Any) -> None:
        """See `Device.copy_out`."""
        call(driver.cuMemcpyDtoHAsync, host.ctypes.data, driver.CUdeviceptr(address), host.nbytes, stream.handle)

    def begin_capture(self, stream: Any) -> None:
        """See `Device.begin_capture`."""
        CudaGraphs.begin(int(stream.handle))

    def end_capture(self, stream: Any) -> Any:
        """See `Device.end_capture`."""
        return CudaGraphs.end(int(stream.handle))

    def abandon_capture(self, stream: Any) -> None:
        """See `Device.abandon_capture`."""
        CudaGraphs.abandon(int(stream.handle))

    def launch(self, graph: Any, stream: Any) -> None:
        """See `Device.launch`."""
        CudaGraphs.launch(graph, int(stream.handle))


class _Owned:
    """A handle that is destroyed with its last reference, in the context in which it was created."""

    #: The driver function that destroys it.
    destroy: ClassVar[str]

    def __init__(self, device: CudaPythonDevice, handle: Any) -> None:
        self._device, self.handle = device, handle

    def __del__(self) -> None:
        with suppress(Exception), self._device.current():  # the driver may be gone before Python is
            getattr(driver, self.destroy)(self.handle)


class _Stream(_Owned):
    destroy = "cuStreamDestroy"


class _Event(_Owned):
    destroy = "cuEventDestroy"


class _Pinned(_Owned):
    destroy = "cuMemFreeHost"

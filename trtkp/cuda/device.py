"""The interface to a GPU as an engine needs it: memory, streams, events and graphs, in the device's primary context.

The primary context is the one that PyTorch and the CUDA runtime use. Engines can therefore read tensors of PyTorch in
place, and write into them.

Two packages can implement the interface: pycuda, which is compiled against a CUDA toolkit, and cuda-bindings
(cuda-python), which comes as a wheel. Neither can be taken for granted, and a third implementation, which only records
calls, lets contexts, graphs and threads be tested without a GPU.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from trtkp.errors import NotRunnableError
from trtkp.machine.packages import importable

__all__ = ["Device", "DeviceMemory", "open_device"]

#: Module that must be installed, module and class that use it. The first that is installed is taken.
_KINDS = (
    ("pycuda", "trtkp.cuda.pycuda", "PyCudaDevice"),
    ("cuda.bindings", "trtkp.cuda.cuda_python", "CudaPythonDevice"),
)


class DeviceMemory:
    """Device memory at ``address``. It is freed by ``free`` or with its last reference."""

    def __init__(self, address: int, nbytes: int, release: Any) -> None:
        self.address, self.nbytes = address, nbytes
        self._release = release

    def free(self) -> None:
        """Free the memory. A second call does nothing."""
        release, self._release = self._release, None
        if release is not None:
            release()

    def __del__(self) -> None:
        with suppress(Exception):  # the driver may be gone before Python is
            self.free()


class Device(ABC):
    """One GPU. Streams, events and graphs are opaque objects; `stream_handle` gives the pointer that TensorRT takes.

    Every method except `current` must be called where `current` has made the context current in the calling thread.
    """

    #: Name of the package that implements it.
    name: ClassVar[str]

    @property
    @abstractmethod
    def why_no_graphs(self) -> str | None:
        """Why no CUDA graph can be captured; None if it can."""

    @abstractmethod
    def current(self) -> AbstractContextManager[None]:
        """Make the primary context current in this thread, for the length of a ``with`` block."""

    @abstractmethod
    def allocate(self, nbytes: int) -> DeviceMemory:
        """Allocate device memory, at least one byte."""

    @abstractmethod
    def pinned(self, nbytes: int) -> npt.NDArray[np.uint8]:
        """Allocate page-locked host memory, uint8 [nbytes]. It lives as long as the array and its views."""

    @abstractmethod
    def create_stream(self) -> Any:
        """Create a stream that does not wait for the default stream."""

    @abstractmethod
    def stream_handle(self, stream: Any) -> int:
        """The ``cudaStream_t`` of a stream, as an integer."""

    @abstractmethod
    def synchronize(self, stream: Any) -> None:
        """Wait until all work of a stream is done."""

    @abstractmethod
    def create_event(self) -> Any:
        """Create an event that records its time."""

    @abstractmethod
    def record(self, event: Any, stream: Any) -> None:
        """Record an event on a stream: it happens when the work before it is done."""

    @abstractmethod
    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Milliseconds between two events that have happened."""

    @abstractmethod
    def wait_for(self, stream: Any, other: int) -> None:
        """Let later work of a stream wait for the work in another library's stream, ``other`` (a ``cudaStream_t``)."""

    @abstractmethod
    def copy_in(self, address: int, host: npt.NDArray[Any], stream: Any) -> None:
        """Enqueue a copy of a contiguous array to device memory at ``address``."""

    @abstractmethod
    def copy_out(self, host: npt.NDArray[Any], address: int, stream: Any) -> None:
        """Enqueue a copy from device memory at ``address`` into a contiguous array."""

    @abstractmethod
    def begin_capture(self, stream: Any) -> None:
        """Begin to capture: work that this thread enqueues on the stream goes into a graph instead of running."""

    @abstractmethod
    def end_capture(self, stream: Any) -> Any:
        """End the capture; returns the graph, ready to be launched."""

    @abstractmethod
    def launch(self, graph: Any, stream: Any) -> None:
        """Launch a graph on a stream."""

    @contextmanager
    def captured(self, stream: Any) -> Iterator[list[Any]]:
        """Capture the work of a ``with`` block. The list that it yields gets the graph at the end.

        If the block raises, the capture is abandoned and the list stays empty.
        """
        found: list[Any] = []
        self.begin_capture(stream)
        try:
            yield found
        except BaseException:
            self.abandon_capture(stream)
            raise
        found.append(self.end_capture(stream))

    @abstractmethod
    def abandon_capture(self, stream: Any) -> None:
        """End a capture and discard its graph; never raises."""


def open_device(index: int = 0) -> Device:
    """Open a GPU of this process through pycuda or cuda-bindings, whichever works first.

    Args:
        index: number of the GPU among those that the process sees.

    Raises:
        NotRunnableError: neither package is installed, or none of them can use the GPU. The message has the reasons.
    """
    reasons = []
    for needed, module, cls in _KINDS:
        if not importable(needed):
            continue
        try:
            device: Device = getattr(importlib.import_module(module), cls)(index)
        except Exception as error:  # whatever an import or a driver may raise
            reasons.append(f"{needed}: {' '.join(str(error).split()) or type(error).__name__}")
        else:
            return device
    if not reasons:
        raise NotRunnableError(
            "neither pycuda nor cuda-bindings is installed", remedy="pip install 'trtkp[cuda-python]', or 'trtkp[gpu]'"
        )
    raise NotRunnableError(f"the GPU cannot be used: {'; '.join(reasons)}", remedy="see trtkp doctor")

"""The GPU as an engine needs it: memory, streams, events, graphs, in the device's primary context.

The primary context is the one that PyTorch and the CUDA runtime use, so that their memory is ours too and nothing has
to be exchanged. Two packages can do it: pycuda, which has to be compiled against a CUDA toolkit, else cuda-bindings
(cuda-python), which comes as a wheel.
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

#: Module that is needed, and the class that uses it; the one to prefer first.
_KINDS = (
    ("pycuda", "trtkp.cuda.pycuda", "PyCudaDevice"),
    ("cuda.bindings", "trtkp.cuda.cuda_python", "CudaPythonDevice"),
)


class DeviceMemory:
    """Bytes on the device at ``address``, given back by ``free`` or with the last reference."""

    def __init__(self, address: int, nbytes: int, release: Any) -> None:
        self.address, self.nbytes = address, nbytes
        self._release = release

    def free(self) -> None:
        """Give it back; twice is allowed."""
        release, self._release = self._release, None
        if release is not None:
            release()

    def __del__(self) -> None:
        with suppress(Exception):  # the driver may be gone before Python is
            self.free()


class Device(ABC):
    """One GPU. Streams, events and graphs are opaque; `stream_handle` is what TensorRT takes.

    Every call but `current` needs the context that `current` makes current in the calling thread.
    """

    #: The package behind it.
    name: ClassVar[str]

    @property
    @abstractmethod
    def why_no_graphs(self) -> str | None:
        """Why nothing can be captured; None where it can."""

    @abstractmethod
    def current(self) -> AbstractContextManager[None]:
        """The primary context, current in this thread."""

    @abstractmethod
    def allocate(self, nbytes: int) -> DeviceMemory:
        """Device memory of at least one byte."""

    @abstractmethod
    def pinned(self, nbytes: int) -> npt.NDArray[np.uint8]:
        """Page-locked host memory, uint8 [nbytes]; it lives as long as the array and its views."""

    @abstractmethod
    def create_stream(self) -> Any:
        """A stream that does not wait for the default stream."""

    @abstractmethod
    def stream_handle(self, stream: Any) -> int:
        """Its ``cudaStream_t``."""

    @abstractmethod
    def synchronize(self, stream: Any) -> None:
        """Wait for all work of a stream."""

    @abstractmethod
    def create_event(self) -> Any:
        """An event that can be timed."""

    @abstractmethod
    def record(self, event: Any, stream: Any) -> None:
        """Let an event happen when the work before it is done."""

    @abstractmethod
    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Milliseconds between two events that happened."""

    @abstractmethod
    def wait_for(self, stream: Any, other: int) -> None:
        """Work after this waits for the work that another library put into its stream (a ``cudaStream_t``)."""

    @abstractmethod
    def copy_in(self, address: int, host: npt.NDArray[Any], stream: Any) -> None:
        """Copy a contiguous array to the device."""

    @abstractmethod
    def copy_out(self, host: npt.NDArray[Any], address: int, stream: Any) -> None:
        """Copy from the device into a contiguous array."""

    @abstractmethod
    def begin_capture(self, stream: Any) -> None:
        """Put what this thread sends to a stream into a graph instead of running it."""

    @abstractmethod
    def end_capture(self, stream: Any) -> Any:
        """The graph, ready to be launched."""

    @abstractmethod
    def launch(self, graph: Any, stream: Any) -> None:
        """Run a graph."""

    @contextmanager
    def captured(self, stream: Any) -> Iterator[list[Any]]:
        """Capture what is done inside; the list gets the graph at the end. A failure inside drops it."""
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
        """End a capture whose graph is not wanted; never raises."""


def open_device(index: int = 0) -> Device:
    """A GPU of this process, with the first of the two packages that is there.

    Raises:
        NotRunnableError: neither is installed, or none gets at the GPU; with the reasons.
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

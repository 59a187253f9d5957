"""A deserialised engine and its execution contexts, with TensorRT's own words in every error."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from time import perf_counter
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from trtkp.cuda.arrays import View
from trtkp.cuda.device import Device, DeviceMemory
from trtkp.engine.trt.config import DTYPES
from trtkp.engine.trt.log import process_logger
from trtkp.engine.trt.plugins import is_rtx, load_plugins
from trtkp.errors import InputError, JobError
from trtkp.machine.processes import Closing
from trtkp.shapes import Dim, Shape, TensorSpec

__all__ = ["Context", "Engine", "Feed", "RunTimes", "engine_spec"]

Result = TypeVar("Result")

#: An input: an array on the host, or device memory of somebody else's.
Feed: TypeAlias = npt.NDArray[Any] | View

#: Remedies by words of TensorRT.
_REMEDIES = {
    "Cannot find plugin": "install the plugin library, see trtkp doctor",
    "getCreator": "install the plugin library, see trtkp doctor",
    "HostCode": "it carries code of its own: set TRTKP_ALLOW_HOST_CODE=1 where you trust its source",
    "incompatible serialization": "build it again with the TensorRT that is installed here",
    "ersion tag does not match": "build it again with the TensorRT that is installed here",
}


@dataclass(frozen=True)
class RunTimes:
    """Milliseconds of one run: copies in, kernels, copies out, all on the GPU; and of the host to enqueue it."""

    h2d: float
    gpu: float
    d2h: float
    enqueue: float

    @property
    def latency(self) -> float:
        """From the first byte that is copied in to the last that is copied out."""
        return self.h2d + self.gpu + self.d2h


class Engine(Closing):
    """An engine in GPU memory.

    Args:
        trt: the imported module: ``tensorrt``, ``tensorrt_lean`` or ``tensorrt_rtx``.
        path: the serialised engine.
        device: where it runs.
        plugins: library of the plugins that it may need.
        allow_host_code: let it load a plugin library or a runtime that it carries.
        refit_from: ONNX file whose weights take the place of the engine's.

    Raises:
        JobError: TensorRT refused it.
    """

    def __init__(
        self,
        trt: Any,
        path: Path,
        device: Device,
        *,
        plugins: Path | None = None,
        allow_host_code: bool = False,
        refit_from: Path | None = None,
    ) -> None:
        self.trt, self.device, self.path = trt, device, path
        self._logger = process_logger(trt)
        self._lock = threading.Lock()
        self.handle: Any = None
        self._runtime: Any = None
        with device.current():
            mark = self._logger.mark()
            runtime = trt.Runtime(self._logger)
            # a Runtime that could not be made is an object all the same, whose use and whose end crash the process
            if problem := self._logger.since(mark):
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(runtime))
                raise JobError(f"TensorRT cannot start: {problem}", file=path)
            if allow_host_code:
                runtime.engine_host_code_allowed = True
            missing = self._load(plugins)
            try:
                self.handle = self.checked("the engine cannot be opened", runtime.deserialize_cuda_engine, _read(path))
            except JobError as error:
                raise error if missing is None else missing from error
            self._runtime = runtime
            if refit_from is not None:
                self._refit(refit_from)
        names = [self.handle.get_tensor_name(index) for index in range(self.handle.num_io_tensors)]
        inputs = [name for name in names if self.handle.get_tensor_mode(name).name == "INPUT"]
        self.inputs = tuple(engine_spec(self.handle, name, is_input=True) for name in inputs)
        self.outputs = tuple(engine_spec(self.handle, name, is_input=False) for name in names if name not in inputs)

    def _load(self, plugins: Path | None) -> JobError | None:
        """Load the plugin library; why not, which matters to an engine that needs it."""
        if plugins is not None and not is_rtx(self.trt):
            try:
                load_plugins(self.trt, plugins, self._logger)
            except JobError as error:
                return error
        return None

    def _refit(self, onnx: Path) -> None:
        what = f"its weights cannot be taken from {onnx}"
        if not hasattr(self.trt, "OnnxParserRefitter"):
            raise self.failure(what, f"{self.trt.__name__} refits no engines")
        refitter = self.trt.Refitter(self.handle, self._logger)
        parser = self.trt.OnnxParserRefitter(refitter, self._logger)
        self.checked(what, parser.refit_from_file, str(onnx))
        self.checked(what, refitter.refit_cuda_engine)

    def checked(self, what: str, function: Callable[..., Result], *arguments: Any) -> Result:
        """The result of one of TensorRT's functions, which says None or False where it failed.

        Raises:
            JobError: ``what`` and TensorRT's own error lines.
        """
        mark = self._logger.mark()
        try:
            result = function(*arguments)
        except (RuntimeError, TypeError, ValueError) as error:  # what its bindings raise
            raise self.failure(what, self._logger.since(mark) or str(error)) from error
        if result is None or result is False:
            raise self.failure(what, self._logger.since(mark))
        return result

    def failure(self, what: str, words: str) -> JobError:
        """An error of this engine's."""
        remedy = next((text for key, text in _REMEDIES.items() if key in words), None)
        return JobError(f"{what}: {words or 'TensorRT gave no reason'}", file=self.path, remedy=remedy)

    def create_context(self) -> Context:
        """A new execution context; by one thread at a time, as TensorRT asks for."""
        with self._lock, self.device.current():
            return Context(self, self.checked("no execution context", self.handle.create_execution_context))

    def close(self) -> None:
        """Give the engine back; its contexts have to be closed by then."""
        if self.handle is not None:
            with self.device.current():
                self.handle = self._runtime = None


@dataclass
class _Binding:
    """Shapes and addresses that a context was given, whether a run with them went through, and its graph."""

    shapes: dict[str, Shape]
    addresses: dict[str, int]
    ran: bool = False
    graph: Any = None


class Context:
    """An execution context with its stream and buffers; for one thread at a time.

    Buffers grow and never shrink. Outputs are copied, and are the caller's. A graph holds for the shapes and addresses
    that it was captured with: others drop it.
    """

    def __init__(self, engine: Engine, handle: Any) -> None:
        self.engine, self.handle = engine, handle
        device = self._device = engine.device
        self._stream = device.create_stream()
        self._events = [device.create_event() for _ in range(4)]
        self._memory: dict[str, DeviceMemory] = {}
        self._pinned: dict[str, npt.NDArray[np.uint8]] = {}
        self._binding: _Binding | None = None

    def holds(self, shapes: Mapping[str, Shape]) -> bool:
        """Whether its last run was at these shapes, so that a graph may be there."""
        return self._binding is not None and self._binding.shapes == shapes

    def run(
        self, feeds: Mapping[str, Feed], streams: Mapping[str, int] | None = None, *, graphs: bool = False
    ) -> tuple[dict[str, npt.NDArray[Any]], RunTimes]:
        """One inference.

        Args:
            feeds: checked inputs: host arrays are copied in, views of device memory are read where they are.
            streams: streams of other libraries in which views become valid, by input.
            graphs: capture the kernels at the second run with the same shapes and addresses, and replay them then.

        Raises:
            JobError: TensorRT or CUDA failed, or the kernels cannot be captured.
        """
        with self._device.current():
            for stream in (streams or {}).values():
                self._device.wait_for(self._stream, stream)
            binding, outputs = self._bind(feeds)
            if graphs and binding.ran and binding.graph is None:
                binding.graph = self._capture()
            enqueue_ms = self._enqueue(feeds, outputs, binding.graph if graphs else None)
            self._device.synchronize(self._stream)
            binding.ran = True
            h2d, gpu, d2h = (
                self._device.elapsed_ms(a, b) for a, b in zip(self._events[:-1], self._events[1:], strict=True)
            )
            return {name: np.array(host) for name, host in outputs.items()}, RunTimes(h2d, gpu, d2h, enqueue_ms)

    def close(self) -> None:
        """Give buffers and context back."""
        if self.handle is None:
            return
        with self._device.current():
            self._device.synchronize(self._stream)
            self._binding = None
            for memory in self._memory.values():
                memory.free()
            self._memory.clear()
            self._pinned.clear()
            self.handle = None

    def _bind(self, feeds: Mapping[str, Feed]) -> tuple[_Binding, dict[str, npt.NDArray[Any]]]:
        """Tell the context shapes and addresses where they are not those of its last run.

        Gives the page-locked arrays of the outputs too.
        """
        checked = self.engine.checked
        shapes = {name: tuple(feed.shape) for name, feed in feeds.items()}
        last, self._binding = self._binding, None  # a failure on the way leaves nothing to go on from
        if last is None or last.shapes != shapes:
            for name, shape in shapes.items():
                checked(f"input {name} {list(shape)}", self.handle.set_input_shape, name, shape)
            if missing := checked("the shapes of the outputs", self.handle.infer_shapes):
                raise self.engine.failure(f"shapes are not known of {', '.join(missing)}", "")
        addresses = {
            name: self._room(name, feed.nbytes) if isinstance(feed, np.ndarray) else feed.address
            for name, feed in feeds.items()
        }
        outputs = {}
        for spec in self.engine.outputs:
            shape, dtype = tuple(self.handle.get_tensor_shape(spec.name)), _dtype(spec)
            if min(shape, default=0) < 0:
                raise InputError(f"output {spec.name} has a shape that depends on values", file=self.engine.path)
            nbytes = dtype.itemsize * prod(shape)
            addresses[spec.name] = self._room(spec.name, nbytes)
            outputs[spec.name] = self._host(spec.name, nbytes).view(dtype).reshape(shape)
        if last is not None and (last.shapes, last.addresses) == (shapes, addresses):
            self._binding = last
        else:
            for name, address in addresses.items():
                checked(f"the address of {name}", self.handle.set_tensor_address, name, address)
            self._binding = _Binding(shapes, addresses)
        return self._binding, outputs

    def _enqueue(self, feeds: Mapping[str, Feed], outputs: Mapping[str, npt.NDArray[Any]], graph: Any) -> float:
        """Send copies and kernels to the stream; milliseconds that launching the kernels took the host."""
        device, stream, events = self._device, self._stream, self._events
        staged = {}
        for name, feed in feeds.items():
            if isinstance(feed, np.ndarray):
                staged[name] = self._host(name, feed.nbytes).view(feed.dtype).reshape(feed.shape)
                staged[name][...] = feed
        device.record(events[0], stream)
        for name, host in staged.items():
            device.copy_in(self._memory[name].address, host, stream)
        device.record(events[1], stream)
        start = perf_counter()
        if graph is not None:
            device.launch(graph, stream)
        else:
            self._execute()
        enqueue_ms = (perf_counter() - start) * 1e3
        device.record(events[2], stream)
        for name, array in outputs.items():
            device.copy_out(array, self._memory[name].address, stream)
        device.record(events[3], stream)
        return enqueue_ms

    def _capture(self) -> Any:
        """The kernels as a graph; a run at these shapes came before, as TensorRT wants."""
        if (reason := self._device.why_no_graphs) is not None:
            raise self.engine.failure("CUDA graphs were asked for", reason)
        with self._device.captured(self._stream) as found:
            self._execute()
        return found[0]

    def _execute(self) -> None:
        self.engine.checked("the engine failed", self.handle.execute_async_v3, self._device.stream_handle(self._stream))

    def _room(self, name: str, nbytes: int) -> int:
        """Address of the tensor's own device memory."""
        found = self._memory.get(name)
        if found is None or found.nbytes < nbytes:
            if found is not None:  # forgotten first: there may be no memory for the larger one
                self._memory.pop(name).free()
            self._memory[name] = found = self._device.allocate(nbytes)
        return found.address

    def _host(self, name: str, nbytes: int) -> npt.NDArray[np.uint8]:
        """The tensor's own page-locked memory."""
        found = self._pinned.get(name)
        if found is None or found.nbytes < nbytes:
            self._pinned[name] = found = self._device.pinned(nbytes)
        return found[:nbytes]


def engine_spec(engine: Any, name: str, *, is_input: bool) -> TensorSpec:
    """Name, dtype and shape of an engine's tensor; dynamic dimensions of an input with their profile's range."""
    shape = [int(size) for size in engine.get_tensor_shape(name)]
    low, high = shape, shape
    if is_input and min(shape, default=0) < 0:
        low, _, high = ([int(size) for size in part] for part in engine.get_tensor_profile_shape(name, 0))
    dims: list[int | Dim] = []
    for axis, size in enumerate(shape):
        if size >= 0:
            dims.append(size)
        elif is_input:
            dims.append(Dim(f"{name}.{axis}", low[axis], high[axis]))
        else:
            dims.append(Dim(f"{name}.{axis}"))
    dtype = engine.get_tensor_dtype(name).name
    return TensorSpec(name, DTYPES.get(dtype, dtype), tuple(dims))


def _dtype(spec: TensorSpec) -> np.dtype[Any]:
    try:
        return np.dtype(spec.dtype)
    except TypeError:
        raise InputError(
            f"output {spec}: NumPy has no such type", remedy="export the model with float32 or float16 outputs"
        ) from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=path) from None

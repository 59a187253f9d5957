"""A deserialised engine and its execution contexts.

TensorRT reports errors to its logger and returns None or False. `Engine.checked` turns that into a `JobError` with the
lines that TensorRT logged.
"""

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
from trtkp.engine.trt.plugins import init_standard_plugins, is_rtx, load_plugins
from trtkp.errors import InputError, JobError
from trtkp.machine.processes import Closing
from trtkp.shapes import Dim, Profile, Shape, ShapeRange, TensorSpec

__all__ = ["Context", "Engine", "Feed", "RunTimes", "engine_spec"]

Result = TypeVar("Result")

#: An input: an array on the host, or a view of device memory that the caller owns.
Feed: TypeAlias = npt.NDArray[Any] | View

#: What to do about an error, by a part of TensorRT's message. The messages are those of 10.x, 11.x and RTX 1.x; an
#: unknown message simply gets no remedy.
_REMEDIES = {
    "Cannot find plugin": "install the plugin library, see trtkp doctor",
    "getCreator": "install the plugin library, see trtkp doctor",
    "HostCode": "the engine contains host code: set TRTKP_ALLOW_HOST_CODE=1 if you trust its source",
    "incompatible serialization": "build it again with the TensorRT installed here",
    "ersion tag does not match": "build it again with the TensorRT installed here",  # Version or version
}


@dataclass(frozen=True)
class RunTimes:
    """Times of one run in milliseconds.

    Attributes:
        h2d: copying the inputs to the GPU, by GPU events.
        gpu: the kernels, by GPU events.
        d2h: copying the outputs to the host, by GPU events.
        enqueue: launching the kernels, by the host's clock.
    """

    h2d: float
    gpu: float
    d2h: float
    enqueue: float

    @property
    def latency(self) -> float:
        """From the first input byte copied in to the last output byte copied out."""
        return self.h2d + self.gpu + self.d2h


class Engine(Closing):
    """An engine in GPU memory.

    Args:
        trt: the imported module: ``tensorrt``, ``tensorrt_lean`` or ``tensorrt_rtx``.
        path: the serialised engine.
        device: the GPU it runs on.
        plugins: plugin library that the engine may need.
        allow_host_code: let the engine load a plugin library or a runtime that it contains.
        refit_from: ONNX file whose weights replace the engine's.

    Raises:
        InputError: the file cannot be read.
        JobError: TensorRT refused the engine.
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
            # TensorRT's bindings return an object even when the Runtime could not be created. Using or destroying it
            # crashes the process, so one reference is kept forever.
            if problem := self._logger.since(mark):
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(runtime))
                raise JobError(f"TensorRT cannot start: {problem}", file=path)
            if allow_host_code:
                runtime.engine_host_code_allowed = True
            init_standard_plugins(trt, self._logger)
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
        dynamic = [spec.name for spec in self.inputs if any(isinstance(dim, Dim) for dim in spec.shape)]
        #: Shapes of the dynamic inputs in every optimisation profile.
        self.profiles: tuple[Profile, ...] = tuple(
            {name: _limits(self.handle, name, number) for name in dynamic}
            for number in range(self.handle.num_optimization_profiles)
        )

    def _load(self, plugins: Path | None) -> JobError | None:
        """Load the plugin library. Returns the error, which is raised only if the engine turns out to need it."""
        if plugins is not None and not is_rtx(self.trt):
            try:
                load_plugins(self.trt, plugins, self._logger)
            except JobError as error:
                return error
        return None

    def _refit(self, onnx: Path) -> None:
        what = f"the engine cannot be refitted with the weights of {onnx}"
        if not hasattr(self.trt, "OnnxParserRefitter"):
            raise self.failure(what, f"{self.trt.__name__} has no refitter")
        refitter = self.trt.Refitter(self.handle, self._logger)
        parser = self.trt.OnnxParserRefitter(refitter, self._logger)
        self.checked(what, parser.refit_from_file, str(onnx))
        self.checked(what, refitter.refit_cuda_engine)

    def checked(self, what: str, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call one of TensorRT's functions, and return its result if that is neither None nor False.

        Args:
            what: what failed, as the error message begins.
            function: the function to call.
            arguments: its arguments.

        Raises:
            JobError: the function failed; the message is ``what`` and the errors that TensorRT logged meanwhile.
        """
        mark = self._logger.mark()
        try:
            result = function(*arguments)
        except (RuntimeError, TypeError, ValueError) as error:  # the exceptions of TensorRT's Python bindings
            raise self.failure(what, self._logger.since(mark) or str(error)) from error
        if result is None or result is False:
            raise self.failure(what, self._logger.since(mark))
        return result

    def failure(self, what: str, words: str) -> JobError:
        """Make the error for a failed call, with a remedy where TensorRT's message is a known one."""
        remedy = next((text for key, text in _REMEDIES.items() if key in words), None)
        return JobError(f"{what}: {words or 'TensorRT gave no reason'}", file=self.path, remedy=remedy)

    def create_context(self) -> Context:
        """Create an execution context; safe to call from several threads, since TensorRT itself is not."""
        with self._lock, self.device.current():
            create = self.handle.create_execution_context
            return Context(self, self.checked("cannot create an execution context", create))

    def close(self) -> None:
        """Free the engine. Its contexts must be closed before."""
        if self.handle is not None:
            with self.device.current():
                self.handle = self._runtime = None


@dataclass
class _Binding:
    """The input shapes and tensor addresses set on a context.

    ``ran`` says whether a run with them succeeded; ``graph`` is the CUDA graph captured for them, if any.
    """

    shapes: dict[str, Shape]
    addresses: dict[str, int]
    ran: bool = False
    graph: Any = None


class Context:
    """An execution context with its own stream and buffers; use it from one thread at a time.

    Buffers grow to the largest run and never shrink, so that runs of alternating sizes do not allocate. Outputs are
    copied, and the caller owns them. A CUDA graph is valid for the shapes and addresses it was captured with; a run
    with others discards it.
    """

    def __init__(self, engine: Engine, handle: Any) -> None:
        self.engine, self.handle = engine, handle
        device = self._device = engine.device
        self._stream = device.create_stream()
        self._events = [device.create_event() for _ in range(4)]  # around copies in, kernels, copies out
        self._memory: dict[str, DeviceMemory] = {}
        self._pinned: dict[str, npt.NDArray[np.uint8]] = {}
        self._binding: _Binding | None = None
        self._profile = 0

    def holds(self, shapes: Mapping[str, Shape]) -> bool:
        """Whether the last run had these input shapes, so that a CUDA graph for them may exist."""
        return self._binding is not None and self._binding.shapes == shapes

    def run(
        self, feeds: Mapping[str, Feed], streams: Mapping[str, int] | None = None, *, graphs: bool = False
    ) -> tuple[dict[str, npt.NDArray[Any]], RunTimes]:
        """Run one inference and wait for it.

        Args:
            feeds: inputs that `check_feeds` accepted. Host arrays are copied to the GPU; views of device memory are
                read in place.
            streams: for views, the CUDA stream of the library that writes them, by input; the run waits for it.
            graphs: capture the kernels as a CUDA graph at the second run with the same shapes and addresses, and
                replay it from then on.

        Returns:
            The outputs by name, and the times of the run.

        Raises:
            InputError: an output's shape depends on the input's values.
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
            # copied: the next run writes to the same page-locked buffers
            return {name: np.array(host) for name, host in outputs.items()}, RunTimes(h2d, gpu, d2h, enqueue_ms)

    def close(self) -> None:
        """Wait for the stream, and free the buffers and the context."""
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
        """Set shapes and addresses on the context, unless they are those of its last run.

        Returns:
            The binding, and the page-locked host arrays that will receive the outputs.
        """
        checked = self.engine.checked
        shapes = {name: tuple(feed.shape) for name, feed in feeds.items()}
        last, self._binding = self._binding, None  # after a failure below, the next run sets everything again
        # TensorRT computes the shapes of the outputs from those of the inputs; only then are the buffers' sizes known.
        if last is None or last.shapes != shapes:
            self._switch(shapes)
            for name, shape in shapes.items():
                checked(f"input {name} {list(shape)}", self.handle.set_input_shape, name, shape)
            if missing := checked("cannot infer the output shapes", self.handle.infer_shapes):
                raise self.engine.failure(f"the shape of {', '.join(missing)} cannot be inferred", "")
        addresses = {
            name: self._device_buffer(name, feed.nbytes) if isinstance(feed, np.ndarray) else feed.address
            for name, feed in feeds.items()
        }
        outputs = {}
        for spec in self.engine.outputs:
            shape, dtype = tuple(self.handle.get_tensor_shape(spec.name)), _dtype(spec)
            if min(shape, default=0) < 0:
                raise InputError(
                    f"output {spec.name}: its shape depends on the input's values, which is not supported",
                    file=self.engine.path,
                )
            nbytes = dtype.itemsize * prod(shape)
            addresses[spec.name] = self._device_buffer(spec.name, nbytes)
            outputs[spec.name] = self._host_buffer(spec.name, nbytes).view(dtype).reshape(shape)
        if last is not None and (last.shapes, last.addresses) == (shapes, addresses):
            self._binding = last
        else:
            for name, address in addresses.items():
                checked(f"cannot set the address of {name}", self.handle.set_tensor_address, name, address)
            self._binding = _Binding(shapes, addresses)
        return self._binding, outputs

    def _switch(self, shapes: Mapping[str, Shape]) -> None:
        """Switch to the engine's optimisation profile for these shapes: the first that holds them."""
        found = next((number for number, profile in enumerate(self.engine.profiles) if _holds(profile, shapes)), None)
        if found is None:  # each input fits some profile, but not all the same
            shown = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
            raise InputError(f"no optimisation profile holds {shown}", file=self.engine.path)
        if found != self._profile:
            self.engine.checked(
                f"cannot switch to optimisation profile {found}",
                self.handle.set_optimization_profile_async,
                found,
                self._device.stream_handle(self._stream),
            )
            self._profile = found

    def _enqueue(self, feeds: Mapping[str, Feed], outputs: Mapping[str, npt.NDArray[Any]], graph: Any) -> float:
        """Enqueue copies and kernels on the stream. Returns the milliseconds the host took to launch the kernels."""
        device, stream, events = self._device, self._stream, self._events
        # Inputs go through page-locked memory: from ordinary memory, the driver would copy them synchronously.
        staged = {}
        for name, feed in feeds.items():
            if isinstance(feed, np.ndarray):
                staged[name] = self._host_buffer(name, feed.nbytes).view(feed.dtype).reshape(feed.shape)
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
        """Capture the kernels as a CUDA graph. TensorRT requires a normal run with the same shapes before."""
        if (reason := self._device.why_no_graphs) is not None:
            raise self.engine.failure("CUDA graphs were asked for", reason)
        with self._device.captured(self._stream) as found:
            self._execute()
        return found[0]

    def _execute(self) -> None:
        self.engine.checked("the engine failed", self.handle.execute_async_v3, self._device.stream_handle(self._stream))

    def _device_buffer(self, name: str, nbytes: int) -> int:
        """Address of the tensor's device buffer, which is replaced if it is too small."""
        found = self._memory.get(name)
        if found is None or found.nbytes < nbytes:
            if found is not None:  # free the old buffer first: the GPU may not have memory for both
                self._memory.pop(name).free()
            self._memory[name] = found = self._device.allocate(nbytes)
        return found.address

    def _host_buffer(self, name: str, nbytes: int) -> npt.NDArray[np.uint8]:
        """The tensor's page-locked host buffer. Copies from pageable memory would not be asynchronous."""
        found = self._pinned.get(name)
        if found is None or found.nbytes < nbytes:
            self._pinned[name] = found = self._device.pinned(nbytes)
        return found[:nbytes]


def _holds(profile: Profile, shapes: Mapping[str, Shape]) -> bool:
    return all(
        low <= size <= high
        for name, limits in profile.items()
        for low, size, high in zip(limits.min, shapes[name], limits.max, strict=True)
    )


def engine_spec(engine: Any, name: str, *, is_input: bool) -> TensorSpec:
    """Name, dtype and shape of an engine's input or output.

    The dynamic dimensions of an input carry the limits of all optimisation profiles of the engine together.
    """
    shape = [int(size) for size in engine.get_tensor_shape(name)]
    low, high = shape, shape
    if is_input and min(shape, default=0) < 0:
        ranges = [_limits(engine, name, number) for number in range(engine.num_optimization_profiles)]
        low = [min(sizes) for sizes in zip(*(limits.min for limits in ranges), strict=True)]
        high = [max(sizes) for sizes in zip(*(limits.max for limits in ranges), strict=True)]
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


def _limits(engine: Any, name: str, profile: int) -> ShapeRange:
    low, opt, high = (tuple(int(size) for size in part) for part in engine.get_tensor_profile_shape(name, profile))
    return ShapeRange(low, opt, high)


def _dtype(spec: TensorSpec) -> np.dtype[Any]:
    try:
        return np.dtype(spec.dtype)
    except TypeError:
        raise InputError(
            f"output {spec}: NumPy has no type {spec.dtype}", remedy="export the model with float32 or float16 outputs"
        ) from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=path) from None

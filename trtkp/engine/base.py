"""The interface of a backend: `Backend` builds and opens engines, `Runner` runs one.

The command line, the Python API, serving and the tests use backends through these classes only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, Self, TypeAlias

from trtkp.engine.options import TrtOptions
from trtkp.errors import NotRunnableError
from trtkp.shapes import Profile, TensorSpec

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as np

    from trtkp.engine.trt.latency import EngineLatency

__all__ = [
    "Availability",
    "Backend",
    "BuildRequest",
    "BuildResult",
    "EngineProfile",
    "NodeTime",
    "Precision",
    "Progress",
    "QuantisedForm",
    "Runner",
    "fuses_qdq",
]

Precision: TypeAlias = Literal["fp32", "fp16"]

#: The two Q/DQ variants: pairs on the inputs of quantised layers (``explicit``), or on inputs and outputs, as the CPU
#: kernels of ONNX Runtime need them (`trtkp.calib.placement`).
QuantisedForm: TypeAlias = Literal["explicit", "onnxruntime"]

#: Called with the name of a phase, the number of steps done, and the total number of steps.
Progress: TypeAlias = Callable[[str, int, int], None]


def fuses_qdq(form: QuantisedForm) -> bool:
    """Whether ONNX Runtime may make integer kernels of the pairs: ``fuse_qdq`` of `OrtRunner`.

    It may where they stand for it. The explicit pairs say what TensorRT computes, and are run as they are written.
    """
    return form == "onnxruntime"


@dataclass(frozen=True)
class Availability:
    """What a backend can do on this machine.

    Attributes:
        can_build: whether it can build an engine here.
        can_run: whether it can run an engine here.
        version: version of the package behind it; None where that is not installed.
        detail: one line: what was found, or what is missing and how to get it.
    """

    can_build: bool
    can_run: bool
    version: str | None
    detail: str


@dataclass(frozen=True)
class BuildRequest:
    """Everything a backend needs to build an engine.

    Attributes:
        onnx: ONNX file of standard operators; its external data, if any, lies in the same directory.
        output: directory to write the artefact to; created if missing.
        profile: smallest, typical and largest shape of every input.
        precision: the type the graph computes in. Networks are strongly typed, so the graph's own types decide; this
            is checked against them. Asking for fp16 with a graph that has no fp16 is an error.
        targets: GPU architectures such as ``("sm86", "sm89")``, or ``("current",)``; empty for the backend's default.
        optimization_level: the builder's effort, 0 to 5; None for the library's default.
        threads: builder threads; None for the library's default.
        plugins: plugin library that computes the graph's ``trtkp`` operators; None to expand their function bodies.
        plugin_nodes: number of ``trtkp`` operators that must become plugin layers.
        trt: further options of TensorRT and TensorRT-RTX.
    """

    onnx: Path
    output: Path
    profile: Profile
    precision: Precision = "fp32"
    targets: tuple[str, ...] = ()
    optimization_level: int | None = None
    threads: int | None = None
    plugins: Path | None = None
    plugin_nodes: int = 0
    trt: TrtOptions = field(default_factory=TrtOptions)


@dataclass(frozen=True)
class BuildResult:
    """What a build wrote.

    Attributes:
        files: the artefact first, then the files it needs (external data).
        version: version of the library that built it.
        targets: GPU architectures the engine was built for; empty for backends without targets.
        seconds: wall-clock time of the whole build, including the start of its process.
        engine_bytes: total size of all files.
        warnings: the library's warnings, one line each.
        log: other lines of the library's log that are worth keeping.
        peak_bytes: peak resident memory of the building process; None where it was not measured.
        plugin_layers: number of layers computed by trtkp's plugins.
    """

    files: tuple[Path, ...]
    version: str
    targets: tuple[str, ...]
    seconds: float
    engine_bytes: int
    warnings: tuple[str, ...] = ()
    log: tuple[str, ...] = ()
    peak_bytes: int | None = None
    plugin_layers: int = 0


@dataclass(frozen=True)
class NodeTime:
    """A node of the graph that an engine executes, after the library's own fusion and layout changes.

    Attributes:
        name: the library's name of the node. For a fused node it is the name of one of its parts, or of its output.
        op: operator type, such as ``Conv``, ``ReorderInput`` or ``QLinearConv``.
        inputs: names of the values the node reads, including initialisers.
        outputs: names of the values the node writes.
        ms: median time in milliseconds.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    ms: float


@dataclass(frozen=True)
class EngineProfile:
    """Times of an engine's nodes while profiled, which is slower than a normal run.

    Attributes:
        nodes: the nodes in the order of execution.
        run_ms: median time of the whole run in milliseconds.
        runs: number of runs behind the medians.
    """

    nodes: tuple[NodeTime, ...]
    run_ms: float
    runs: int


class Runner(Protocol):
    """An opened engine, as a context manager that closes it. Use it from one thread at a time."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Name, dtype and shape of every input that ``run`` takes."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Name, dtype and shape of every output that ``run`` returns."""

    @property
    def threads(self) -> int | None:
        """Number of CPU threads that compute; None for engines that run on a GPU."""

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one inference.

        Args:
            feeds: an array for every input, by name.

        Returns:
            An array for every output, by name; the caller owns them.

        Raises:
            InputError: an input is missing, unknown, or has the wrong dtype or shape; nothing was run.
            JobError: the engine failed.
        """

    def close(self) -> None:
        """Free the engine's memory; may be called twice."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Backend(ABC):
    """One way to turn an ONNX graph into something that runs. Making one imports nothing heavy.

    What a backend can do is said here and nowhere else: the rest of the project asks these attributes and methods, and
    compares no names.

    >>> from trtkp.engine import get_backend
    >>> backend = get_backend("tensorrt-rtx")
    >>> backend.compiles, backend.takes_targets, backend.takes_plugins
    (True, True, False)
    >>> backend.engine_targets("fp8", ())
    ('sm89', 'sm120', 'sm121')
    """

    #: The name on the command line and in the manifest.
    name: ClassVar[str]
    #: File name of the artefact in a bundle.
    artefact: ClassVar[str]
    #: TensorRT's builder compiles the graph: `TrtOptions` and an optimisation level mean something, and the artefact is
    #: an engine, to be checked against the graph that it was made from.
    compiles: ClassVar[bool] = False
    #: The engine computes on the CPU of this machine: its layers can be timed and its memory measured wherever it is
    #: built.
    runs_on_cpu: ClassVar[bool] = False
    #: Engines are planned for the GPU at hand, where our plugins may compute layers.
    takes_plugins: ClassVar[bool] = False
    #: GPU architectures can be named that the engine is built for.
    takes_targets: ClassVar[bool] = False
    #: Where Q/DQ pairs have to stand.
    quantised_form: ClassVar[QuantisedForm] = "explicit"
    #: Type of the layers that are not quantised, where none is asked for.
    usual_fallback: ClassVar[Precision] = "fp16"
    #: What an engine file may begin with; the artefact of a backend without any is an ONNX file.
    magic: ClassVar[tuple[bytes, ...]] = ()
    #: Triton's platform that serves a bundle: the ONNX graph unless Triton knows the engine.
    triton_platform: ClassVar[str] = "onnxruntime_onnx"
    #: What a user who exports a bundle to Triton should know, one line.
    triton_note: ClassVar[str] = ""

    @abstractmethod
    def availability(self) -> Availability:
        """What it can do here; never raises."""

    @abstractmethod
    def build(self, request: BuildRequest, progress: Progress | None = None) -> BuildResult:
        """Write the artefact into ``request.output``; a failed build leaves what was there before.

        Raises:
            InputError: a request that cannot be right (unknown target, shapes that do not fit the graph).
            JobError: the library refused the graph or died.
        """

    @abstractmethod
    def open(self, path: Path, *, threads: int | None = None) -> Runner:
        """Open an artefact; ``threads`` are CPU threads, for backends that compute there.

        Raises:
            InputError: no such file.
            NotRunnableError: it cannot run on this machine.
            JobError: the library refused it.
        """

    def check_quantisable(self, kind: str, targets: Sequence[str] = ()) -> None:  # noqa: B027 - a hook may do nothing
        """Refuse an 8-bit type that the backend, or one of the architectures, does not compute in.

        Raises:
            InputError: with the type, and what to use instead.
        """

    def engine_targets(self, precision: str, targets: Sequence[str]) -> tuple[str, ...]:
        """The architectures to build for in this precision, of those that were asked for; empty for the usual ones."""
        return tuple(targets)

    def gpu_latency(
        self, runner: Runner, feeds: Mapping[str, np.ndarray], *, batch: int, seconds: float
    ) -> tuple[EngineLatency, ...]:
        """Latency of an opened engine by events on the GPU, without CUDA graphs and with them; empty on a CPU.

        Args:
            runner: of this backend.
            feeds: of one inference.
            batch: samples in the feeds.
            seconds: how long each of the two is timed.
        """
        return ()

    def profile(
        self, path: Path, feeds: Mapping[str, np.ndarray], *, threads: int | None = None, runs: int = 20
    ) -> EngineProfile:
        """Time every node of an artefact, in a session of its own: profiling slows a run.

        Raises:
            NotRunnableError: this backend cannot profile.
        """
        raise NotRunnableError(f"backend {self.name} cannot profile single layers yet")

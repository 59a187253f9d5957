"""The one interface behind which every backend builds and runs an engine."""

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

#: Where Q/DQ pairs stand in a graph: on what quantised layers read (``explicit``), or on both sides of them, as the CPU
#: kernels of ONNX Runtime want it (`trtkp.calib.placement`).
QuantisedForm: TypeAlias = Literal["explicit", "onnxruntime"]

#: Called with the phase's name, the steps done and the steps in all.
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
        can_build: it can make an engine here.
        can_run: it can run one here.
        version: of the package behind it; None when it is not installed.
        detail: what was found, or why not and what to do about it; one line.
    """

    can_build: bool
    can_run: bool
    version: str | None
    detail: str


@dataclass(frozen=True)
class BuildRequest:
    """Everything a backend needs to make an engine.

    Attributes:
        onnx: ONNX file of standard operators; external data only beside it.
        output: directory to write the artefact to; made when missing.
        profile: smallest, usual and largest shape of every input.
        precision: what the graph computes in. Networks are strongly typed, so the graph's own types rule and this is
            held against them: fp16 asked for a graph without fp16 is an error.
        targets: GPU architectures such as ``("sm86", "sm89")``, or ``("current",)``; empty: the backend's default.
        optimization_level: the builder's effort, 0 to 5; None: the library's default.
        threads: builder threads; None: the library's default.
        plugins: library whose plugins compute the graph's operators of domain ``trtkp``; None: their bodies do.
        plugin_nodes: number of those operators.
        trt: what TensorRT and TensorRT-RTX take besides.
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
        files: the artefact first, then what belongs to it (external data).
        version: of the library that built it.
        targets: GPU architectures the engine was built for; empty where that has no meaning.
        seconds: wall clock of the whole build, process start included.
        engine_bytes: size of all files.
        warnings: the library's warnings, one a line.
        log: everything else the library said that is worth keeping, one a line.
        peak_bytes: peak resident memory of the building process; None where it was not measured.
        plugin_layers: layers of the engine that our plugins compute.
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
    """A node of the graph that an engine really runs.

    Attributes:
        name: the library's name for it; where it fused several, that of one of them or of its output.
        op: operator type, such as ``Conv``, ``ReorderInput`` or ``QLinearConv``.
        inputs: names of the values it reads, initialisers among them.
        outputs: names of the values it writes.
        ms: median time.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    ms: float


@dataclass(frozen=True)
class EngineProfile:
    """Time per node, in the order of execution, and median of the whole run, all while profiled, milliseconds."""

    nodes: tuple[NodeTime, ...]
    run_ms: float
    runs: int


class Runner(Protocol):
    """An opened engine; a context manager, closed on exit. Not for use by two threads at once."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Names, dtypes and shapes that ``run`` takes."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Names, dtypes and shapes that ``run`` gives."""

    @property
    def threads(self) -> int | None:
        """CPU threads that compute; None where the computing is done elsewhere."""

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One inference on a batch.

        Raises:
            InputError: missing or unknown inputs, wrong dtype or shape; nothing was run.
            JobError: the engine failed.
        """

    def close(self) -> None:
        """Give the memory back; twice is allowed."""

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

"""The interface of a backend: `Backend` builds and opens engines, `Runner` runs one.

The command line, the Python API, serving and the tests use backends through these classes only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, Self, TypeAlias

from trtkp.engine.options import RunOptions, TrtOptions
from trtkp.errors import NotRunnableError
from trtkp.shapes import Profile, TensorSpec

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as np

    from trtkp.engine.latency import EngineLatency

__all__ = [
    "Availability",
    "Backend",
    "BuildRequest",
    "BuildResult",
    "EngineProfile",
    "NodeTime",
    "Precision",
    "Progress",
    "QdqVariant",
    "Runner",
    "fuses_qdq",
]

Precision: TypeAlias = Literal["fp32", "fp16"]

#: The two Q/DQ variants: pairs on the inputs of quantised layers (``explicit``), or on inputs and outputs, as the CPU
#: kernels of ONNX Runtime need them (`trtkp.calib.placement`).
QdqVariant: TypeAlias = Literal["explicit", "onnxruntime"]

#: Called with the name of a phase, the number of steps done, and the total number of steps.
Progress: TypeAlias = Callable[[str, int, int], None]


def fuses_qdq(variant: QdqVariant) -> bool:
    """Whether ONNX Runtime may fuse the Q/DQ pairs of a graph into integer kernels (``fuse_qdq`` of `OrtRunner`).

    It may in its own variant. A graph of the explicit variant is written for TensorRT, and ONNX Runtime computes its
    pairs in floating point, as they are written.
    """
    return variant == "onnxruntime"


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
        sparse: whether a layer holds 2:4 weights, for which the library may have faster kernels.
        device: number of the GPU to build on, for libraries that build on one.
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
    sparse: bool = False
    device: int = 0
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
        carried_libraries: file names of the plugin libraries inside the engine.
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
    carried_libraries: tuple[str, ...] = ()


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
    """A library that builds and runs engines. Creating a backend object imports nothing heavy.

    The attributes and methods describe everything a backend can do. Other code asks them, and never compares the names
    of backends.

    Example:
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
    #: Whether TensorRT's builder compiles the graph. If so, `TrtOptions` and the optimisation level apply, and the
    #: artefact is an engine, which must be checked against the graph it was built from.
    compiles: ClassVar[bool] = False
    #: Whether engines run on this machine's CPU. If so, layers can be timed and memory measured wherever one is built.
    runs_on_cpu: ClassVar[bool] = False
    #: Whether engines are planned for this machine's GPU, with trtkp's plugins for the layers where they are faster.
    takes_plugins: ClassVar[bool] = False
    #: Whether the GPU architectures to build for can be chosen.
    takes_targets: ClassVar[bool] = False
    #: The Q/DQ variant that quantised graphs must have.
    qdq_variant: ClassVar[QdqVariant] = "explicit"
    #: Default type of the layers that are not quantised.
    default_fallback: ClassVar[Precision] = "fp16"
    #: The first four bytes that engine files can have. Empty if the artefact is an ONNX file.
    magic: ClassVar[tuple[bytes, ...]] = ()
    #: Triton's platform for a bundle: ONNX, unless Triton can run the engine itself.
    triton_platform: ClassVar[str] = "onnxruntime_onnx"
    #: One line for users who export a bundle to Triton; empty if there is nothing to say.
    triton_note: ClassVar[str] = ""

    @abstractmethod
    def availability(self, device: int = 0) -> Availability:
        """Whether the backend can build and run on this machine, on the GPU of this number. Never raises."""

    @abstractmethod
    def build(self, request: BuildRequest, progress: Progress | None = None) -> BuildResult:
        """Build the artefact in ``request.output``. A failed build leaves an older artefact untouched.

        Args:
            request: what to build.
            progress: called with phase, step and total.

        Raises:
            InputError: the request is invalid, such as an unknown target or shapes that do not fit the graph.
            JobError: the library refused the graph, or its process died.
        """

    @abstractmethod
    def open(self, path: Path, *, threads: int | None = None, options: RunOptions | None = None) -> Runner:
        """Open an artefact in a new runner, which the caller closes.

        Args:
            path: the artefact.
            threads: CPU threads, for backends that compute on the CPU; None for the number of physical cores.
            options: contexts, CUDA graphs, host code, refitting and the GPU, for backends that compile; the others
                ignore them.

        Raises:
            InputError: the file does not exist.
            NotRunnableError: the engine cannot run on this machine.
            JobError: the library refused the engine.
        """

    def check_quantisable(self, kind: str, targets: Sequence[str] = ()) -> None:  # noqa: B027 - a hook may do nothing
        """Check that the backend, and every chosen GPU architecture, can compute in an 8-bit type.

        Args:
            kind: int8 or fp8.
            targets: the chosen GPU architectures.

        Raises:
            InputError: it cannot; the message says what to use instead.
        """

    def engine_targets(self, precision: str, targets: Sequence[str]) -> tuple[str, ...]:
        """The GPU architectures to build for.

        Args:
            precision: precision of the engine.
            targets: the architectures the user chose; empty if none.

        Returns:
            The architectures; empty for the library's default.
        """
        return tuple(targets)

    def gpu_ms(self, runner: Runner, feeds: Mapping[str, np.ndarray]) -> float:
        """Run an opened engine once, and measure the milliseconds its kernels take by GPU events.

        Args:
            runner: a runner of this backend.
            feeds: the inputs of the run.

        Raises:
            NotRunnableError: the backend does not run engines on a GPU.
        """
        raise NotRunnableError(f"backend {self.name} has no GPU to time engines on")

    def gpu_latency(
        self, runner: Runner, feeds: Mapping[str, np.ndarray], *, batch: int, seconds: float
    ) -> tuple[EngineLatency, ...]:
        """Measure the latency of an opened engine by GPU events, without and with CUDA graphs; empty on a CPU.

        Args:
            runner: a runner of this backend.
            feeds: the inputs of one run.
            batch: number of samples in the inputs.
            seconds: seconds for which each of the two is timed.
        """
        return ()

    def profile(
        self,
        path: Path,
        feeds: Mapping[str, np.ndarray],
        *,
        threads: int | None = None,
        runs: int = 20,
        device: int = 0,
    ) -> EngineProfile:
        """Measure the time of every node of an artefact. It is opened separately, because profiling slows a run.

        Args:
            path: the artefact.
            feeds: the inputs of one run.
            threads: as for `open`.
            runs: number of runs whose median is taken.
            device: number of the GPU, for backends that compile.

        Raises:
            NotRunnableError: the backend cannot profile.
        """
        raise NotRunnableError(f"backend {self.name} cannot profile single layers yet")

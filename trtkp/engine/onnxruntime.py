"""The ``onnxruntime`` backend: runs ``engine.onnx`` in ONNX Runtime, on the CPU or with its CUDA provider.

It is the default on machines without an NVIDIA GPU. ``verify`` also uses it as the reference for the other backends.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import numpy as np

from trtkp.engine.base import (
    Availability,
    Backend,
    BuildRequest,
    BuildResult,
    EngineProfile,
    NodeTime,
    Precision,
    Progress,
    QdqVariant,
    fuses_qdq,
)
from trtkp.engine.feeds import check_feeds, check_profile
from trtkp.engine.options import RunOptions
from trtkp.engine.rtx_provider import add_rtx_provider
from trtkp.errors import InputError, JobError, NotRunnableError, raise_if_out_of_memory
from trtkp.machine.cpu import usable_cores
from trtkp.machine.packages import importable, installed_version
from trtkp.machine.processes import Closing
from trtkp.shapes import Dim, TensorSpec

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

__all__ = ["TRACED_GRAPH", "OnnxRuntimeBackend", "OrtRunner", "Provider", "profile"]

Provider: TypeAlias = Literal["cpu", "cuda", "rtx"]

_PROVIDERS: dict[Provider, list[str]] = {
    "cpu": ["CPUExecutionProvider"],
    "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"],
    "rtx": [],  # added to the session's options by `trtkp.engine.rtx_provider`
}

#: Name of the file to which a traced session writes the graph as it runs it, after fusion and layout changes.
TRACED_GRAPH = "traced.onnx"

#: ONNX Runtime's type names that differ from NumPy's.
_DTYPES = {"float": "float32", "double": "float64"}


class OnnxRuntimeBackend(Backend):
    """ONNX Runtime on the CPU; its CUDA provider on request."""

    name: ClassVar[str] = "onnxruntime"
    artefact: ClassVar[str] = "engine.onnx"
    runs_on_cpu: ClassVar[bool] = True
    qdq_variant: ClassVar[QdqVariant] = "onnxruntime"
    default_fallback: ClassVar[Precision] = "fp32"

    def availability(self, device: int = 0) -> Availability:
        """The backend builds and runs wherever the package is installed."""
        version = installed_version("onnxruntime", "onnxruntime-gpu")
        if not importable("onnxruntime"):
            return Availability(
                False, False, None, "package onnxruntime is not installed: pip install onnxruntime (or onnxruntime-gpu)"
            )
        return Availability(True, True, version, f"onnxruntime {version} on {usable_cores()} CPU cores")

    def build(self, request: BuildRequest, progress: Progress | None = None) -> BuildResult:
        """Open the graph once, check the profile against its inputs, and write it to ``output/engine.onnx``.

        Nothing is compiled: ONNX Runtime optimises a graph when it is opened. A graph that is already at its place is
        not rewritten. The options ``targets`` and ``optimization_level`` have no effect.

        Raises:
            InputError: the file is missing or is not ONNX, or the profile does not fit.
            JobError: ONNX Runtime cannot load the graph.
        """
        start = time.perf_counter()
        if progress:
            progress("Checking the graph in ONNX Runtime", 0, 1)
        with OrtRunner(request.onnx, threads=request.threads, fuse_qdq=fuses_qdq(self.qdq_variant)) as runner:
            check_profile(runner.inputs, request.profile)
        files = _place(request.onnx, request.output / self.artefact)
        if progress:
            progress("Checking the graph in ONNX Runtime", 1, 1)
        return BuildResult(
            files=files,
            version=installed_version("onnxruntime", "onnxruntime-gpu") or "unknown",
            targets=(),
            seconds=time.perf_counter() - start,
            engine_bytes=sum(file.stat().st_size for file in files),
        )

    def check_quantisable(self, kind: str, targets: Sequence[str] = ()) -> None:
        """Its CPU kernels know no FP8."""
        if kind == "fp8":
            raise InputError(
                "--precision fp8: onnxruntime does not compute in FP8", remedy="use -b tensorrt-rtx, or int8"
            )

    def profile(
        self,
        path: Path,
        feeds: Mapping[str, np.ndarray],
        *,
        threads: int | None = None,
        runs: int = 20,
        device: int = 0,
    ) -> EngineProfile:
        """Time every node; see the function `profile` of this module."""
        return profile(path, feeds, threads=threads, runs=runs)

    def open(
        self,
        path: Path,
        *,
        threads: int | None = None,
        options: RunOptions | None = None,
        provider: Provider = "cpu",
        spin: bool = False,
    ) -> OrtRunner:
        """Open an ONNX file; see `OrtRunner` for the arguments and errors. ``options`` is without effect."""
        return OrtRunner(path, threads=threads, provider=provider, spin=spin)


class OrtRunner(Closing):
    """An ONNX Runtime session that checks its inputs and computes deterministically.

    Args:
        model: an ONNX file (external data in the same directory), or a model in memory, of any size.
        threads: CPU threads within one operator; None for the number of physical cores this process may use.
        provider: ``cuda`` and ``rtx`` (TensorRT-RTX) compute on a GPU, and fail where they cannot; they never fall back
            to the CPU.
        spin: let idle threads busy-wait between operators. This shortens the small layers of a single session. But an
            idle session's threads keep spinning: with four sessions of two threads on two cores, timed in turn, a
            net of 6.7 ms took 17 to 35 ms. It is therefore off, and must stay off where sessions are timed in turn.
        fuse_qdq: let ONNX Runtime fuse Q/DQ pairs and the operators between them into integer kernels. Without it the
            pairs are computed as written, in floating point. Use that to run a graph written for TensorRT (FP8
            included): this CPU's 8-bit instructions would add an error of their own, since AVX2 saturates the sum
            of two products at 16 bits.
        trace: directory for the graph as it is executed and, at `end_trace`, a profile; tracing slows every run.

    Raises:
        InputError: the file is missing or is not an ONNX model.
        NotRunnableError: the provider is not available.
        JobError: ONNX Runtime cannot load the graph.
    """

    def __init__(
        self,
        model: Path | bytes | onnx.ModelProto | ir.Model,
        *,
        threads: int | None = None,
        provider: Provider = "cpu",
        spin: bool = False,
        fuse_qdq: bool = True,
        trace: Path | None = None,
    ) -> None:
        if threads is not None and threads < 1:
            raise InputError(f"{threads} threads: at least one is needed")
        self.threads: int | None = None if provider == "rtx" else threads or usable_cores()
        self._file = model if isinstance(model, Path) else None
        self._session: Any = self._open(model, self.threads or 1, provider, spin, fuse_qdq, trace)
        self.inputs = tuple(_spec(value) for value in self._session.get_inputs())
        self.outputs = tuple(_spec(value) for value in self._session.get_outputs())

    def _open(
        self,
        model: Path | bytes | onnx.ModelProto | ir.Model,
        threads: int,
        provider: Provider,
        spin: bool,
        fuse_qdq: bool,
        trace: Path | None,
    ) -> Any:
        if isinstance(model, Path) and not model.is_file():
            raise InputError("no such file", file=model)
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise NotRunnableError(f"onnxruntime cannot be used: {error}", remedy="pip install onnxruntime") from None
        missing = [name for name in _PROVIDERS[provider] if name not in ort.get_available_providers()]
        if missing:
            raise NotRunnableError(
                f"onnxruntime has no {missing[0]} here", remedy="pip install onnxruntime-gpu, or use the CPU"
            )
        options = ort.SessionOptions()
        # Operators run one after the other, and all threads work on the same one. A CNN has little parallelism between
        # operators, and parallel operators would make per-layer times meaningless.
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.use_deterministic_compute = True  # the same bits on every run, so that results can be compared exactly
        options.log_severity_level = 3  # errors only: warnings would go straight to the user's terminal
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
        options.add_session_config_entry("session.disable_quant_qdq", "0" if fuse_qdq else "1")
        if trace is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(trace / "profile")
            options.optimized_model_filepath = str(trace / TRACED_GRAPH)
        first = _PROVIDERS[provider][0] if provider != "rtx" else add_rtx_provider(ort, options)
        # ReluQuantRewrite removes a ReLU in front of a quantiser. That is right for uint8, which clips at zero, but
        # 1.31 does it for FP8 too, where negative values then survive.
        left_out = [] if fuse_qdq else ["ReluQuantRewrite"]
        try:
            with _source(model) as source:
                session = ort.InferenceSession(
                    source, options, providers=_PROVIDERS[provider] or None, disabled_optimizers=left_out
                )
        except Exception as error:  # ONNX Runtime's exceptions have no common base class but Exception
            raise_if_out_of_memory(error)
            if "fallback to CPU EP has been explicitly disabled" in str(error):
                raise JobError(
                    "TensorRT-RTX does not take every node of the graph", file=self._file, remedy="use -b onnxruntime"
                ) from error
            kind = InputError if type(error).__name__ in {"InvalidProtobuf", "InvalidArgument"} else JobError
            raise kind(f"ONNX Runtime cannot load the model: {_first_line(error)}", file=self._file) from error
        # A provider that fails to start is only logged by ONNX Runtime, which then uses the next one, the CPU.
        if session.get_providers()[0] != first:
            raise NotRunnableError(f"onnxruntime could not start its {first}", file=self._file)
        return session

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one inference; see `Runner.run`."""
        if self._session is None:
            raise ValueError("the runner is closed")
        checked = check_feeds(self.inputs, feeds)
        try:
            values = self._session.run(None, checked)
        except Exception as error:
            raise_if_out_of_memory(error)
            raise JobError(f"ONNX Runtime failed: {_first_line(error)}", file=self._file) from error
        return {spec.name: value for spec, value in zip(self.outputs, values, strict=True)}

    @property
    def session(self) -> Any:
        """The underlying ``onnxruntime.InferenceSession``; None once the runner is closed."""
        return self._session

    def end_trace(self) -> Path:
        """Write the profile of all runs so far and return its path (Chrome's trace format, times in microseconds)."""
        return Path(self._session.end_profiling())

    def close(self) -> None:
        """Free the session and its memory; may be called twice."""
        self._session = None


def _source(model: Path | bytes | onnx.ModelProto | ir.Model) -> AbstractContextManager[str | bytes]:
    if isinstance(model, bytes):
        return nullcontext(model)
    if isinstance(model, Path):
        return nullcontext(str(model))
    from trtkp.graph.save import session_source

    return session_source(model)


def _spec(value: Any) -> TensorSpec:
    text = value.type.removeprefix("tensor(").removesuffix(")")
    # A dynamic dimension without a name gets one of its own, so that `check_feeds` does not tie it to another's size.
    shape = tuple(
        size if isinstance(size, int) else Dim(size or f"{value.name}.{axis}") for axis, size in enumerate(value.shape)
    )
    return TensorSpec(value.name, _DTYPES.get(text, text), shape)


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _place(source: Path, target: Path) -> tuple[Path, ...]:
    """Write the model to ``target``; return that path and the paths of its external data."""
    import onnx

    target.parent.mkdir(parents=True, exist_ok=True)
    if source.resolve() != target.resolve():
        import onnx_ir as ir

        from trtkp.graph.save import save_graph

        # Loaded and saved rather than copied, because the external data of a file has its name inside the graph.
        save_graph(ir.load(source), target)
    names = _external_files(onnx.load(target, load_external_data=False))
    return (target, *(target.parent / name for name in names))


def _external_files(model: onnx.ModelProto) -> list[str]:
    """Names of the files that hold the initialisers, relative to the model."""
    return sorted(
        {entry.value for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"}
    )


#: ONNX Runtime appends this to a node's name in the profile.
_SUFFIX = "_kernel_time"


#: Runs left out of the medians: the first ones allocate memory and pack weights.
_WARMUP = 3


def profile(
    path: Path, feeds: Mapping[str, np.ndarray], *, threads: int | None = None, runs: int = 20
) -> EngineProfile:
    """Measure the median time of every node over ``runs`` runs, after three warm-up runs.

    Args:
        path: the ONNX file.
        feeds: an array for every input, by name.
        threads: as for `OrtRunner`.
        runs: number of measured runs.

    Raises:
        InputError: the file is missing, or the inputs do not fit.
        JobError: ONNX Runtime cannot load the graph.
    """
    import onnx

    with tempfile.TemporaryDirectory(prefix="trtkp-profile-") as folder:
        with OrtRunner(path, threads=threads, trace=Path(folder)) as runner:
            for _ in range(_WARMUP + runs):
                runner.run(feeds)
            events = json.loads(runner.end_trace().read_text(encoding="utf-8"))
        graph = onnx.load(Path(folder) / TRACED_GRAPH, load_external_data=False).graph
    nodes = {node.name: node for node in graph.node if node.name}
    taken: dict[tuple[str, str], list[float]] = defaultdict(list)
    wholes = []
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX):
            taken[event["name"].removesuffix(_SUFFIX), event["args"]["op_name"]].append(event["dur"] / 1e3)
        elif event.get("name") == "model_run":
            wholes.append(event["dur"] / 1e3)
    times = []
    for (name, op), durations in taken.items():
        # Nodes without a name share one entry; the times of one run are added up.
        per_run = np.reshape(durations, (_WARMUP + runs, -1)).sum(axis=1)[_WARMUP:]
        node = nodes.get(name)
        inputs, outputs = (tuple(node.input), tuple(node.output)) if node is not None else ((), ())
        times.append(NodeTime(name, op, inputs, outputs, float(np.median(per_run))))
    return EngineProfile(tuple(times), statistics.median(wholes[_WARMUP:]), runs)

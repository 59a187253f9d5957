"""Running ``engine.onnx`` in ONNX Runtime: the reference, and the default where there is no GPU."""

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
    QuantisedForm,
)
from trtkp.engine.feeds import check_feeds, check_profile
from trtkp.errors import InputError, JobError, NotRunnableError
from trtkp.machine.cpu import usable_cores
from trtkp.machine.packages import importable, installed_version
from trtkp.machine.processes import Closing
from trtkp.shapes import Dim, TensorSpec

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

__all__ = ["TRACED_GRAPH", "OnnxRuntimeBackend", "OrtRunner", "Provider", "profile"]

Provider: TypeAlias = Literal["cpu", "cuda"]

_PROVIDERS: dict[Provider, list[str]] = {
    "cpu": ["CPUExecutionProvider"],
    "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"],
}

#: Name of the graph that a traced session writes: fused, laid out and named as it is run.
TRACED_GRAPH = "traced.onnx"

_DTYPES = {"float": "float32", "double": "float64"}


class OnnxRuntimeBackend(Backend):
    """ONNX Runtime on the CPU, or its CUDA provider when asked for."""

    name: ClassVar[str] = "onnxruntime"
    artefact: ClassVar[str] = "engine.onnx"
    runs_on_cpu: ClassVar[bool] = True
    quantised_form: ClassVar[QuantisedForm] = "onnxruntime"
    usual_fallback: ClassVar[Precision] = "fp32"

    def availability(self) -> Availability:
        """It builds and runs wherever the package is installed."""
        version = installed_version("onnxruntime", "onnxruntime-gpu")
        if not importable("onnxruntime"):
            return Availability(
                False, False, None, "package onnxruntime is not installed: pip install onnxruntime (or onnxruntime-gpu)"
            )
        return Availability(True, True, version, f"onnxruntime {version} on {usable_cores()} CPU cores")

    def build(self, request: BuildRequest, progress: Progress | None = None) -> BuildResult:
        """Put the graph at ``output/engine.onnx``, open it once, and hold the profile against its inputs.

        There is nothing to compile; a graph that is already at its place stays as it is. ``targets`` and
        ``optimization_level`` mean nothing here.

        Raises:
            InputError: no such file, not ONNX, or a profile that does not fit.
            JobError: ONNX Runtime refused the graph.
        """
        start = time.perf_counter()
        if progress:
            progress("Checking the graph in ONNX Runtime", 0, 1)
        with self.open(request.onnx, threads=request.threads) as runner:
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
        self, path: Path, feeds: Mapping[str, np.ndarray], *, threads: int | None = None, runs: int = 20
    ) -> EngineProfile:
        """See `profile`."""
        return profile(path, feeds, threads=threads, runs=runs)

    def open(
        self, path: Path, *, threads: int | None = None, provider: Provider = "cpu", spin: bool = False
    ) -> OrtRunner:
        """See ``OrtRunner``."""
        return OrtRunner(path, threads=threads, provider=provider, spin=spin)


class OrtRunner(Closing):
    """An ONNX Runtime session with checked feeds and the same numbers on every run.

    Args:
        model: an ONNX file (external data beside it), or a model in memory, of any size.
        threads: CPU threads inside one operator; None: the physical cores this process may use.
        provider: ``cuda`` computes on a GPU and fails where it cannot; there is no silent way back to the CPU.
        spin: let idle threads wait busily between operators. It shortens a lone session's small layers, but the
            threads of an idle session keep spinning too: with four sessions of two threads on two cores, timed in
            turn, a net of 6.7 ms took 17 to 35 ms. So it is off, and must be off for timing sessions in turn.
        fuse_qdq: make integer kernels of Q/DQ pairs and what stands between them. Without it the pairs run as they are
            written, in floating point: what a graph made for TensorRT says, FP8 included, and not what 8-bit
            instructions of this CPU make of it (AVX2 saturates sums of two products at 16 bits).
        trace: a folder to write the graph that is really run to, and a profile at `end_trace`; it slows every run.

    Raises:
        InputError: no such file, or not an ONNX model.
        NotRunnableError: the provider is not there.
        JobError: ONNX Runtime refused the graph.
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
        self.threads: int | None = threads or usable_cores()
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
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.use_deterministic_compute = True
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
        options.add_session_config_entry("session.disable_quant_qdq", "0" if fuse_qdq else "1")
        if trace is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(trace / "profile")
            options.optimized_model_filepath = str(trace / TRACED_GRAPH)
        # the rewrite takes a ReLU before an FP8 quantiser for superfluous, which it is not (tried on 1.31)
        left_out = [] if fuse_qdq else ["ReluQuantRewrite"]
        try:
            with _source(model) as source:
                session = ort.InferenceSession(
                    source, options, providers=_PROVIDERS[provider], disabled_optimizers=left_out
                )
        except Exception as error:  # its exceptions have no common base but Exception
            kind = InputError if type(error).__name__ in {"InvalidProtobuf", "InvalidArgument"} else JobError
            raise kind(f"ONNX Runtime cannot load the model: {_first_line(error)}", file=self._file) from error
        if session.get_providers()[0] != _PROVIDERS[provider][0]:
            raise NotRunnableError(f"onnxruntime could not start its {_PROVIDERS[provider][0]}", file=self._file)
        return session

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One inference; see ``Runner.run``."""
        if self._session is None:
            raise ValueError("the runner is closed")
        checked = check_feeds(self.inputs, feeds)
        try:
            values = self._session.run(None, checked)
        except Exception as error:
            raise JobError(f"ONNX Runtime failed: {_first_line(error)}", file=self._file) from error
        return {spec.name: value for spec, value in zip(self.outputs, values, strict=True)}

    @property
    def session(self) -> Any:
        """The ``InferenceSession``, for those who drive it themselves."""
        return self._session

    def end_trace(self) -> Path:
        """Write the profile of all runs so far (Chrome's trace format, microseconds) and give its path."""
        return Path(self._session.end_profiling())

    def close(self) -> None:
        """Drop the session and its memory."""
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
    # a dimension without a name is no other's
    shape = tuple(
        size if isinstance(size, int) else Dim(size or f"{value.name}.{axis}") for axis, size in enumerate(value.shape)
    )
    return TensorSpec(value.name, _DTYPES.get(text, text), shape)


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _place(source: Path, target: Path) -> tuple[Path, ...]:
    """The model at ``target`` with all it needs beside it, and the files that makes."""
    import onnx

    target.parent.mkdir(parents=True, exist_ok=True)
    if source.resolve() != target.resolve():
        import onnx_ir as ir

        from trtkp.graph.save import save_graph

        save_graph(ir.load(source), target)
    names = _external_files(onnx.load(target, load_external_data=False))
    return (target, *(target.parent / name for name in names))


def _external_files(model: onnx.ModelProto) -> list[str]:
    """Names of the files that hold the initialisers, relative to the model."""
    return sorted(
        {entry.value for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"}
    )


_SUFFIX = "_kernel_time"


#: Runs that are left out of the medians: the first ones allocate.
_WARMUP = 3


def profile(
    path: Path, feeds: Mapping[str, np.ndarray], *, threads: int | None = None, runs: int = 20
) -> EngineProfile:
    """Median time of every node over ``runs`` runs.

    Raises:
        InputError: no such file, or feeds that do not fit.
        JobError: ONNX Runtime refused the graph.
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
        # several nodes without a name share an entry: their times of a run are added up
        per_run = np.reshape(durations, (_WARMUP + runs, -1)).sum(axis=1)[_WARMUP:]
        node = nodes.get(name)
        inputs, outputs = (tuple(node.input), tuple(node.output)) if node is not None else ((), ())
        times.append(NodeTime(name, op, inputs, outputs, float(np.median(per_run))))
    return EngineProfile(tuple(times), statistics.median(wholes[_WARMUP:]), runs)

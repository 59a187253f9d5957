"""ONNX to a serialised engine with TensorRT's own builder: TensorRT 10.x, 11.x and TensorRT-RTX in one code path.

What the installed library can do is asked of its module (``hasattr``), never told by its version number. The library is
driven directly and not through Polygraphy's loaders, for two reasons that were tried: Polygraphy's configuration for
RTX targets leaves TF32 on (1.7.1 sets it by default), and its parser turns structured errors into log lines.

This runs in the build worker (``trtkp.engine.worker``) only: the library can abort its process.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trtkp.engine.base import BuildRequest, Progress
from trtkp.engine.profiles import check_profile
from trtkp.errors import InputError, JobError
from trtkp.shapes import Dim, TensorSpec

__all__ = ["DTYPES", "build_engine", "default_targets", "set_tf32"]

#: Called with a severity ("error", "warning", "info") and a line.
Log = Callable[[str, str], None]

#: Seconds between two reports of one phase: a large network makes thousands of steps.
_PROGRESS_INTERVAL_S = 0.05

#: TensorRT's name of a type to NumPy's.
DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}

_LAYERS_WITH_A_PRECISION = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY")


def build_engine(trt: Any, request: BuildRequest, engine: Path, log: Log, progress: Progress) -> dict[str, Any]:
    """Parse, configure, build, write.

    Args:
        trt: the imported module, ``tensorrt`` or ``tensorrt_rtx``.
        request: what to build.
        engine: file to write.
        log: takes what the library says.
        progress: takes phase, step and total.

    Returns:
        ``version``, ``targets`` and ``seconds`` of the build proper.

    Raises:
        InputError: unknown targets, or shapes that do not fit the graph.
        JobError: the parser or the builder refused; the message carries its own words.
    """
    start = time.perf_counter()
    logger = _make_logger(trt, log)
    builder = trt.Builder(logger)
    _refuse_our_plugins(trt)
    network, parser = _parse(trt, builder, logger, request.onnx)
    _check_precision(trt, network, request, log)
    config = builder.create_builder_config()
    set_tf32(trt, config, request.tf32)
    if request.optimization_level is not None:
        config.builder_optimization_level = request.optimization_level
    if request.threads is not None and hasattr(builder, "max_threads"):
        builder.max_threads = request.threads
    targets = _set_targets(trt, config, request.targets)
    _add_profile(builder, config, network, request)
    monitor = _make_monitor(trt, progress)
    if monitor is not None:
        config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    del parser
    if plan is None:
        raise JobError(f"the builder gave no engine: {logger.last_error or 'no reason was given'}", file=request.onnx)
    with engine.open("wb") as file:
        file.write(memoryview(plan))
    return {"version": trt.__version__, "targets": targets, "seconds": time.perf_counter() - start}


def _make_logger(trt: Any, log: Log) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last_error = ""

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                # Of a cascade the first line is the cause and the rest its echo.
                self.last_error = self.last_error or message
                log("error", message)
            elif severity == trt.ILogger.WARNING:
                log("warning", message)

    return Logger()


def _make_monitor(trt: Any, progress: Progress) -> Any | None:
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.totals: dict[str, int] = {}
            self.last = 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.totals[phase_name] = num_steps
            progress(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            now = time.monotonic()
            if now - self.last >= _PROGRESS_INTERVAL_S:
                self.last = now
                progress(phase_name, step + 1, self.totals.get(phase_name, 0))
            return True

        def phase_finish(self, phase_name: str) -> None:
            total = self.totals.pop(phase_name, 0)
            progress(phase_name, total, total)

    return Monitor()


def _refuse_our_plugins(trt: Any) -> None:
    """RTX's parser would create our plugin and the process would then abort in ``addPluginV3`` (tried on 1.7.1)."""
    if not hasattr(trt, "ComputeCapability"):
        return
    names = [c.name for c in trt.get_plugin_registry().all_creators if c.plugin_namespace == "trtkp"]
    if names:
        raise JobError(
            f"the plugin library is loaded ({names[0]} is registered), and TensorRT-RTX takes no plugins",
            remedy="do not preload libtrtkp_register.so",
        )


def _parse(trt: Any, builder: Any, logger: Any, onnx: Path) -> tuple[Any, Any]:
    """The network, and the parser: it owns the weights, so it has to outlive the build."""
    flags = 0
    kinds = trt.NetworkDefinitionCreationFlag
    for name in ("STRONGLY_TYPED", "EXPLICIT_BATCH"):
        if name in kinds.__members__:
            flags |= 1 << int(kinds.__members__[name])
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    # From the path, not from bytes: external data is looked for beside it.
    if not parser.parse_from_file(str(onnx)):
        errors = [_parser_line(parser.get_error(i)) for i in range(parser.num_errors)]
        first = parser.get_error(0) if parser.num_errors else None
        raise JobError(
            f"the parser refused the graph: {'; '.join(errors) or logger.last_error or 'no reason was given'}",
            file=onnx,
            layer=(first.node_name() or None) if first is not None else None,
        )
    if not network.num_outputs:
        # Bytes that happen to be a protobuf message of unknown fields parse as an empty graph.
        raise InputError("not an ONNX model, or one without outputs", file=onnx)
    return network, parser


def _parser_line(error: Any) -> str:
    where = f"{error.node_operator()} node {error.node_name() or error.node()}" if error.node_operator() else ""
    return f"{where}: {error.desc()}" if where else error.desc()


def _check_precision(trt: Any, network: Any, request: BuildRequest, log: Log) -> None:
    """Strong typing computes in the graph's types whatever is asked for, so a mismatch would pass unseen."""
    half = [
        layer.get_output(0).dtype in (trt.float16, trt.bfloat16)
        for layer in (network.get_layer(index) for index in range(network.num_layers))
        if layer.type.name in _LAYERS_WITH_A_PRECISION
    ]
    if request.precision == "fp16" and half and not any(half):
        raise JobError("fp16 was asked for, but every convolution of the graph is fp32", file=request.onnx)
    if request.precision == "fp32" and any(half):
        log("warning", f"fp32 was asked for, but {sum(half)} of {len(half)} convolutions of the graph are fp16")


def set_tf32(trt: Any, config: Any, wanted: bool) -> None:
    """Every flavour sets TF32 on by default; ours is off (relative error 1e-6 and not 1e-3)."""
    if hasattr(trt.BuilderFlag, "TF32"):
        (config.set_flag if wanted else config.clear_flag)(trt.BuilderFlag.TF32)


def _set_targets(trt: Any, config: Any, wanted: tuple[str, ...]) -> list[str]:
    """Choose the GPU architectures; an empty choice is ``default_targets``."""
    if not hasattr(trt, "ComputeCapability") or not hasattr(config, "num_compute_capabilities"):
        if wanted:
            raise InputError(f"targets {', '.join(wanted)}: this TensorRT builds for the GPU at hand only")
        return []
    members = trt.ComputeCapability.__members__
    known = [name.lower() for name in members if name.startswith("SM")]
    targets = list(dict.fromkeys(name.lower() for name in wanted)) or default_targets(known)
    valid = [*known, "current"]
    wrong = [name for name in targets if name not in valid]
    if wrong:
        raise InputError(f"no target {', '.join(wrong)}", remedy=f"choose from {', '.join(valid)}")
    if "current" in targets and len(targets) > 1:
        raise InputError("the target current goes with no other", remedy="name the architectures instead")
    config.num_compute_capabilities = len(targets)
    for index, name in enumerate(targets):
        if not config.set_compute_capability(members[name.upper()], index):
            raise JobError(f"the builder refused the target {name}")
    return targets


def default_targets(known: list[str]) -> list[str]:
    """Every architecture but Turing (``sm75``).

    An RTX engine holds the weights once and no machine code: that is made on the user's GPU. Measured on 1.7.1 with a
    20-convolution fp16 net of 19.2 M parameters (38.35 MB of weights): one target 38,821,356 bytes, these five
    38,812,316, all six 38,825,980; 0.6 s and 309 MiB of memory each (``benchmarks/results/rtx_targets.json``). So an
    engine for every GPU costs nothing. Turing is left out because NVIDIA's support matrix says that an engine which
    must also run there can be slower elsewhere; ask for ``sm75`` by name.
    """
    return [name for name in known if name != "sm75"]


def _add_profile(builder: Any, config: Any, network: Any, request: BuildRequest) -> None:
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    specs = [
        TensorSpec(
            t.name, DTYPES.get(t.dtype.name, t.dtype.name), tuple(_dim(i, int(d)) for i, d in enumerate(t.shape))
        )
        for t in tensors
    ]
    check_profile(specs, request.profile)
    profile = builder.create_optimization_profile()
    for tensor in tensors:
        if tensor.is_shape_tensor:
            raise InputError(f"input {tensor.name} is a shape tensor, which no profile here describes")
        if tensor.name in request.profile:
            profile.set_shape(tensor.name, *request.profile[tensor.name].shapes())
    if tensors and config.add_optimization_profile(profile) < 0:
        raise JobError("the builder refused the optimisation profile", file=request.onnx)


def _dim(axis: int, size: int) -> int | Dim:
    return Dim(f"d{axis}") if size < 0 else size

"""Build a serialised engine from ONNX with TensorRT 10.x, TensorRT 11.x or TensorRT-RTX, in one code path.

The code asks the imported module what the library supports (``hasattr``) and never compares version numbers.

It calls the library directly rather than through Polygraphy's loaders. Two things went wrong with those: their
configuration for RTX targets leaves TF32 on (TensorRT-RTX 1.7.1 sets it by default), and their parser turns structured
errors into log lines, which lose the name of the node.

Only the build worker (`trtkp.engine.trt.worker`) calls this module, because the library can abort its process.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from trtkp.engine.base import BuildRequest, Progress
from trtkp.engine.trt.config import add_profiles, clear_tf32, set_options, set_targets
from trtkp.engine.trt.log import Log, make_logger, make_monitor
from trtkp.engine.trt.plugins import (
    check_plugin_layers,
    init_standard_plugins,
    load_plugins,
    plugin_layers,
    refuse_plugins,
)
from trtkp.engine.trt.tactics import TimingCacheFile
from trtkp.errors import InputError, JobError

__all__ = ["build_engine"]

_LAYERS_WITH_A_PRECISION = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY")


def build_engine(trt: Any, request: BuildRequest, engine: Path, log: Log, progress: Progress) -> dict[str, Any]:
    """Parse the ONNX file, configure the builder, build, and write the engine.

    Args:
        trt: the imported module, ``tensorrt`` or ``tensorrt_rtx``.
        request: what to build.
        engine: file to write.
        log: called with the library's log lines.
        progress: called with phase, step and total.

    Returns:
        ``version``, ``targets``, ``plugin_layers``, ``carried_libraries``, and the ``seconds`` of the build itself.

    Raises:
        InputError: a target or option is unknown, or the profile's shapes do not fit the graph.
        JobError: the parser or the builder failed; the message holds the library's own words.
    """
    start = time.perf_counter()
    logger = make_logger(trt, log)
    builder = trt.Builder(logger)
    refuse_plugins(trt)
    init_standard_plugins(trt, logger)
    if request.plugins is not None:
        load_plugins(trt, request.plugins, logger)
    network, parser = _parse(trt, builder, logger, request.onnx)
    if request.plugins is not None:
        check_plugin_layers(trt, network, request.plugin_nodes, request.onnx)
    _check_precision(trt, network, request, log)
    config = builder.create_builder_config()
    clear_tf32(trt, config)
    carried = set_options(trt, builder, config, request, _used_libraries(parser, request))
    targets = set_targets(trt, config, request.targets)
    add_profiles(builder, config, network, request)
    folder = request.trt.timing_cache
    cache = TimingCacheFile(trt, config, folder, log, sparse=request.sparse) if folder is not None else None
    monitor = make_monitor(trt, progress)
    if monitor is not None:
        config.progress_monitor = monitor
    mark = logger.mark()
    plan = builder.build_serialized_network(network, config)
    found = plugin_layers(trt, network)
    del parser  # only now: it owns the weights that the builder read
    if plan is None:
        raise JobError(f"the builder failed: {logger.since(mark) or 'it gave no reason'}", file=request.onnx)
    if cache is not None:
        cache.save()
    with engine.open("wb") as file:
        file.write(memoryview(plan))  # the plan is TensorRT's memory; bytes(plan) would copy it once more
    return {
        "version": trt.__version__,
        "targets": targets,
        "plugin_layers": len(found),
        "carried_libraries": [Path(name).name for name in carried],
        "seconds": time.perf_counter() - start,
    }


def _parse(trt: Any, builder: Any, logger: Any, onnx: Path) -> tuple[Any, Any]:
    """Parse the file. Returns the network and the parser, which owns the weights and must outlive the build."""
    # Which of the two flags exist depends on the version. Without STRONGLY_TYPED, the builder may choose a precision of
    # its own where weak typing is the default.
    flags = 0
    kinds = trt.NetworkDefinitionCreationFlag
    for name in ("STRONGLY_TYPED", "EXPLICIT_BATCH"):
        if name in kinds.__members__:
            flags |= 1 << int(kinds.__members__[name])
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    mark = logger.mark()
    # Parse from the path, not from bytes: the parser looks for external data in the same directory.
    if not parser.parse_from_file(str(onnx)):
        errors = [_parser_line(parser.get_error(i)) for i in range(parser.num_errors)]
        first = parser.get_error(0) if parser.num_errors else None
        raise JobError(
            f"the parser refused the graph: {'; '.join(errors) or logger.since(mark) or 'it gave no reason'}",
            file=onnx,
            layer=(first.node_name() or None) if first is not None else None,
        )
    if not network.num_outputs:
        # Protobuf skips unknown fields, so a file that is some other message can parse as an empty graph.
        raise InputError("is not an ONNX model, or has no outputs", file=onnx)
    return network, parser


def _used_libraries(parser: Any, request: BuildRequest) -> list[str]:
    """Libraries of the plugins that a version-compatible engine needs, where the parser knows them."""
    options = request.trt
    if not (options.version_compatible or options.embed_plugins) or not hasattr(parser, "get_used_vc_plugin_libraries"):
        return []
    return [str(name) for name in parser.get_used_vc_plugin_libraries()]


def _parser_line(error: Any) -> str:
    where = f"{error.node_operator()} node {error.node_name() or error.node()}" if error.node_operator() else ""
    return f"{where}: {error.desc()}" if where else error.desc()


def _check_precision(trt: Any, network: Any, request: BuildRequest, log: Log) -> None:
    """Compare the requested precision with the network's types.

    A strongly typed network computes in the graph's own types, so a mismatch would otherwise go unnoticed.
    """
    half = [
        layer.get_output(0).dtype in (trt.float16, trt.bfloat16)
        for layer in (network.get_layer(index) for index in range(network.num_layers))
        if layer.type.name in _LAYERS_WITH_A_PRECISION
    ]
    if request.precision == "fp16" and half and not any(half):
        raise JobError("fp16 was asked for, but every convolution of the graph is fp32", file=request.onnx)
    if request.precision == "fp32" and any(half):
        log("warning", f"fp32 was asked for, but {sum(half)} of {len(half)} convolutions of the graph are fp16")

"""The steps from planned graphs to a bundle: quantise → write → check → build → accuracy → manifest.

Every build takes these steps, whether its graphs come from a model or from a bundle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trtkp.bundle.manifest import FileRecord, Manifest
from trtkp.bundle.records import libraries
from trtkp.engine import BuildRequest, BuildResult
from trtkp.errors import InputError, JobError
from trtkp.graph.save import save_graph
from trtkp.graph.sparsity import holds_two_four
from trtkp.pipeline.draft import Draft, Graphs
from trtkp.pipeline.job import Job
from trtkp.pipeline.quantised import (
    check_quantised,
    quantisation_record,
    save_quantised,
    state_file,
)
from trtkp.pipeline.records import tensorrt_record
from trtkp.shapes import Shape

if TYPE_CHECKING:
    import onnx_ir as ir

    from trtkp.calib.quantise import Quantised
    from trtkp.data.labelled import LabelledData

__all__ = [
    "Built",
    "Checked",
    "Done",
    "build_engine",
    "check_graphs",
    "complete",
    "measure_accuracy",
    "quantise_graphs",
    "write_graphs",
]


@dataclass(frozen=True)
class Checked:
    """Graphs that are on disk, and that agree with the dense masked net.

    Attributes:
        onnx: ``engine.onnx``.
        plugin_nodes: its operators that a plugin computes.
        sparse: whether a layer of standard operators holds 2:4 weights.
        warnings: one line each.
    """

    onnx: Path
    plugin_nodes: int
    sparse: bool
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Built:
    """An engine. If it can run here, it was checked against its graph.

    Attributes:
        request: what the backend was asked for.
        result: what it made.
    """

    request: BuildRequest
    result: BuildResult


@dataclass(frozen=True)
class Done:
    """The results of all steps after the draft.

    Attributes:
        checked: its graphs.
        built: its engine.
        quantised: how it was quantised; None if it was not.
        accuracy: before and after; None where it was not measured.
    """

    checked: Checked
    built: Built
    quantised: Quantised | None
    accuracy: dict[str, float] | None


def quantise_graphs(job: Job, draft: Draft, graphs: Graphs, staging: Path) -> tuple[Graphs, Quantised]:
    """Add Q/DQ pairs to ``engine.onnx`` and scales to ``model.onnx``, and write ``calibration.json``.

    Raises:
        InputError: a calibration that does not fit, or data that cannot be calibrated with.
        JobError: NaN or infinity inside the net.
    """
    from trtkp.calib.quantise import quantise

    assert job.options.kind is not None
    made = quantise(
        graphs.packed,  # the scales are put on its nodes
        graphs.engine,
        draft.profile,
        job.options.calibration,
        kind=job.options.kind,
        backend=job.backend,
        samples=draft.samples,
        calibration=draft.calibration,
        keep_io=job.options.keep_io,
        lowerings=draft.lowerings,
        threads=job.options.threads,
        state=state_file(job.output),
        progress=job.progress,
    )
    save_quantised(made, staging)
    return replace(graphs, engine=made.engine), made


def write_graphs(graphs: Graphs, staging: Path) -> Checked:
    """Write both graphs; returns what the build of the engine needs to know of them. They are not compared yet."""
    save_graph(graphs.packed, staging / "model.onnx")
    save_graph(graphs.engine, staging / "engine.onnx")
    plugin_nodes = sum(node.domain == "trtkp" for node in graphs.engine.graph)
    return Checked(staging / "engine.onnx", plugin_nodes, holds_two_four(graphs.engine))


def check_graphs(job: Job, draft: Draft, written: Checked, quantised: Quantised | None, staging: Path) -> Checked:
    """Compare the written ``engine.onnx`` with the dense masked net before anything is published.

    It works on the files: the graphs themselves need not be in memory any more.

    Raises:
        InputError: the net gives NaN or infinity.
        JobError: they differ by more than rounding explains.
    """
    import onnx_ir as ir

    from trtkp.verification.bundle import compare_graphs, dense_graph
    from trtkp.verification.ranges import FLOAT16_MAX, beyond_float16

    precision, onnx = job.options.precision, written.onnx
    reference = dense_graph(ir.load(staging / "model.onnx"))
    if quantised is not None:
        check_quantised(quantised, onnx, reference, draft.profile, precision, job.path)
        return written

    shapes = {name: shapes.min for name, shapes in draft.profile.items()}
    check = compare_graphs("engine.onnx", onnx, reference, shapes, precision)
    if check.status == "failed":
        _check_finite(reference, shapes, job.path)
        raise JobError(f"the planned graph differs from the dense one: {check.summary}", file=job.path)
    warnings = []
    if precision == "fp16" and (found := beyond_float16(ir.load(onnx), shapes)) is not None:
        warnings.append(
            f"activation {found[0]} reaches {found[1]:.3g} on random inputs, fp16 ends at {FLOAT16_MAX:.0f}: "
            "--precision fp32 is safe"
        )
    return replace(written, warnings=tuple(warnings))


def _check_finite(reference: ir.Model, shapes: Mapping[str, Shape], path: Path) -> None:
    """Refuse a net that gives NaN or infinity itself: two graphs of it cannot be compared."""
    from trtkp.engine.feeds import random_feeds
    from trtkp.engine.onnxruntime import OrtRunner

    with OrtRunner(reference) as runner:
        outputs = runner.run(random_feeds(runner.inputs, shapes, seed=0))
    for name, output in outputs.items():
        if output.dtype.kind == "f" and not np.isfinite(output).all():
            raise InputError(
                f"its output {name} is NaN or infinite on random inputs",
                file=path,
                remedy="check its weights, and the variances of its batch normalisation",
            )


def build_engine(job: Job, draft: Draft, checked: Checked, quantised: Quantised | None) -> Built:
    """Build the engine from ``engine.onnx``, and check it against that graph if it can run here.

    Raises:
        JobError: the backend cannot build it, or it computes something else.
    """
    from trtkp.verification.bundle import check_built

    options = job.options
    request = BuildRequest(
        onnx=checked.onnx,
        output=checked.onnx.parent,
        profile=draft.profile,
        precision=options.floating if quantised is None else quantised.calibration.fallback,  # type: ignore[arg-type]  # checked at the start
        targets=job.backend.engine_targets(options.precision, options.targets),
        threads=options.threads,
        optimization_level=options.level,
        plugins=draft.plugins if checked.plugin_nodes else None,
        plugin_nodes=checked.plugin_nodes,
        sparse=checked.sparse,
        device=options.device,
        trt=job.tensorrt,
    )
    result = job.backend.build(request, job.progress)
    check_built(job.backend, request, result, options.precision, fuse_qdq=_fused(quantised))
    return Built(request, result)


def measure_accuracy(
    job: Job, draft: Draft, checked: Checked, quantised: Quantised | None, data: LabelledData
) -> dict[str, float]:
    """Accuracy before (``dense``) and after (``pruned``), in ONNX Runtime.

    A bundle does not hold the unpruned net, so a build that starts from one takes the figure of its manifest.
    """
    from trtkp.engine.accuracy import accuracy
    from trtkp.engine.onnxruntime import OrtRunner

    def measured(graph: ir.Model | Path) -> float:
        with OrtRunner(graph, threads=job.options.threads, fuse_qdq=_fused(quantised)) as runner:
            return accuracy(runner, data, draft.profile)

    known = draft.manifest.accuracy or {}
    dense = known["dense"] if "dense" in known else measured(draft.reference)
    return {"dense": dense, "pruned": measured(checked.onnx)}


def complete(
    job: Job, draft: Draft, done: Done, seconds: Mapping[str, float], files: Mapping[str, FileRecord]
) -> Manifest:
    """The draft of the manifest, completed."""
    quantised, request, result = done.quantised, done.built.request, done.built.result
    notes = quantised.notes if quantised is not None else ()
    return draft.manifest.model_copy(
        update={
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "precision": job.options.precision,
            "targets": list(result.targets),
            "quantisation": quantisation_record(quantised) if quantised is not None else None,
            "tensorrt": tensorrt_record(request, result) if job.backend.compiles else None,
            "accuracy": done.accuracy or draft.manifest.accuracy,
            "libraries": libraries(job.backend.name, result.version),
            "seconds": draft.manifest.seconds | dict(seconds),
            "warnings": [*draft.manifest.warnings, *notes, *done.checked.warnings, *result.warnings],
            "files": dict(files),
        }
    )


def _fused(quantised: Quantised | None) -> bool:
    """Whether ONNX Runtime may turn Q/DQ pairs into integer kernels: if the graph was made for it, or has no pairs."""
    return quantised is None or quantised.calibration.fuse_qdq

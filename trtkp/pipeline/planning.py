"""The planning step: choose the lowering of every layer, and write ``engine.onnx`` from the masked net."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trtkp.bundle.manifest import PlanRecord
from trtkp.pipeline.job import Job
from trtkp.pipeline.prepare import Loaded, Pruned
from trtkp.pipeline.records import plan_record
from trtkp.pruning.method import Method

if TYPE_CHECKING:
    import onnx_ir as ir

    from trtkp.graph.layers import LayerTable
    from trtkp.plan.planner import Plan
    from trtkp.plan.target import EngineTarget

__all__ = ["Planned", "plan"]


@dataclass(frozen=True)
class Planned:
    """``engine.onnx``, and how it came about.

    Attributes:
        engine: the net without dead parts, each layer in its lowering: standard operators, or one packed for a plugin.
        plan: of the layers that are left.
        record: of the plan, for the manifest.
        plugins: library of the plugins that the plan may have chosen; None where there is none.
        warnings: one line each.
    """

    engine: ir.Model
    plan: Plan
    record: PlanRecord
    plugins: Path | None
    warnings: tuple[str, ...]


def plan(job: Job, loaded: Loaded, table: LayerTable, pruned: Pruned, dense: ir.Model, method: Method) -> Planned:
    """Choose the lowering of every layer, and write the net in these lowerings.

    Args:
        job: the build.
        loaded: a given calibration fixes the lowerings, because its ranges belong to the tensors of those lowerings.
        table: the net's convolutions.
        pruned: the index sets to pack.
        dense: the masked graph (`Rewritten.dense`); not changed.
        method: the method; if no packed layer is faster than dense, the warning holds its advice.
    """
    from trtkp.pipeline.engine_graph import make_engine_graph
    from trtkp.plan.cache import TimingCache
    from trtkp.plan.planner import PlanRequest

    options = job.options
    only: str | dict[str, str] | None = None if options.lowering == "auto" else options.lowering
    if loaded.calibration is not None and only is None:
        only = {name: choice.lowering for name, choice in loaded.calibration.layers.items() if choice.lowering}
    cache = TimingCache() if options.timing_cache else TimingCache.in_memory()
    target = _target(job)
    runs_here = job.backend.runs_on_cpu or target is not None
    made = make_engine_graph(
        dense,
        pruned.index_sets,
        table,
        {name: shapes.opt for name, shapes in loaded.profile.items()},
        PlanRequest(
            measure=options.measure and runs_here,
            threads=options.threads,
            only=only,
            cache=cache,
            target=target,
            progress=job.progress,
        ),
    )
    warnings = [*cache.problems, *made.notes]
    all_dense = pruned.index_sets and set(made.plan.choices.values()) == {"dense"}
    if all_dense and only is None and not made.plan.notes:
        warnings.append(_why_all_dense(method))
    return Planned(
        engine=made.model,
        plan=made.plan,
        record=plan_record(made, forced=options.lowering != "auto", threads=options.threads),
        plugins=target.library.path if target is not None and target.library is not None else None,
        warnings=tuple(warnings),
    )


def _target(job: Job) -> EngineTarget | None:
    """The GPU that a TensorRT engine is planned for; None for other backends, or without that GPU."""
    if not job.backend.takes_plugins:
        return None
    from trtkp.plan.target import EngineTarget

    options = job.options
    # plugins compute in floating point, which would be slower than TensorRT's own layers in 8 bits
    plugins = options.plugins and options.kind is None
    return EngineTarget.here(
        job.backend,
        precision=options.floating,
        plugins=plugins,
        level=options.level,
        trt=job.tensorrt,
        device=options.device,
    )


def _why_all_dense(method: Method) -> str:
    text = "no pruned layer is faster packed than dense here: the lists are too fine or keep too much"
    coarser = method.coarser()
    return text if coarser is None else f"{text}; {coarser}"

"""What a build did, as the records of a bundle's manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from hashlib import sha256
from typing import TYPE_CHECKING

from trtkp.bundle.manifest import (
    DeadRecord,
    GatherRecord,
    LayerRecord,
    PaperCounts,
    PlanRecord,
    RemovedRecord,
    TensorRTRecord,
)
from trtkp.bundle.records import timing_record
from trtkp.index.accounting import Accounting
from trtkp.index.index_set import IndexSet
from trtkp.machine.gpu import find_gpus
from trtkp.shapes import Profile, smallest_samples

if TYPE_CHECKING:
    from trtkp.engine.base import BuildRequest, BuildResult
    from trtkp.graph.layers import LayerTable
    from trtkp.model import SourceModel
    from trtkp.pipeline.engine_graph import EngineGraph
    from trtkp.plan.planner import Plan

__all__ = [
    "layer_records",
    "paper_counts",
    "plan_record",
    "tensorrt_record",
]


def paper_counts(method: str, source: SourceModel, profile: Profile, accounting: Accounting) -> PaperCounts | None:
    """The net as the authors of a method count it, where that is known and not the common counting.

    V-SKP counts with batch normalisation (parameters over the state dict, statistics included; a FLOP per element) and
    without it and biases; PPT-KP, of the same group, presumably too. SOKS counts FLOPs of every operator, as its
    authors' ASKs do.
    """
    from trtkp.graph.counting import batch_norm_elements, elementwise_operations, product_weights, statistics

    def counted(counting: str, more_params: int, more_flops: int, other: PaperCounts | None = None) -> PaperCounts:
        params, flops = accounting.params, accounting.macs
        return PaperCounts(
            counting=counting,
            dense_params=params.dense + more_params,
            retained_params=params.retained + more_params,
            dense_flops=flops.dense + more_flops,
            retained_flops=flops.retained + more_flops,
            other=other,
        )

    if method not in ("vskp", "l1", "pptkp", "soks"):
        return None
    graph, shapes = source.graph(), smallest_samples(source.inputs, profile)
    if method == "soks":
        return counted("FLOPs of every operator", 0, elementwise_operations(graph, shapes))
    without = counted("without BatchNorm and biases", product_weights(graph) - accounting.params.dense, 0)
    more = batch_norm_elements(graph, shapes)
    return counted("with BatchNorm and its statistics", statistics(graph), more, without)


def layer_records(
    table: LayerTable,
    accounting: Accounting,
    index_sets: Mapping[str, IndexSet],
    plan: Plan,
    *,
    ops: Mapping[str, str],
    paper: Mapping[str, int],
    left_dense: Mapping[str, str],
) -> list[LayerRecord]:
    """Every convolution of the table, in its order.

    Args:
        table: the net's convolutions.
        accounting: made from the table.
        index_sets: by parameter name.
        plan: of the packed nodes.
        ops: node name to its operator in ``model.onnx``.
        paper: index bytes per parameter in the method's own format.
        left_dense: parameter name to the reason why it was not pruned.
    """
    plans = {layer.node: layer for layer in plan.layers}
    records = []
    for layer, counted in zip(table.layers, accounting.layers, strict=True):
        index, planned = index_sets.get(layer.name), plans.get(layer.node)
        records.append(
            LayerRecord(
                name=layer.name,
                node=layer.node,
                shape=layer.weight_shape,
                groups=layer.groups,
                strides=layer.strides,
                dilations=layer.dilations,
                input_size=layer.input_size,
                output_size=layer.output_size,
                kind=counted.kind.value if counted.kind is not None else "dense",
                reason=None if index is not None else left_dense.get(layer.name, "no zeros in its weight"),
                filter_groups=index.filter_groups if index is not None else None,
                density=counted.density,
                dense_params=counted.params.dense,
                retained_params=counted.params.retained,
                dense_macs=counted.macs.dense,
                retained_macs=counted.macs.retained,
                index_bytes=counted.index_bytes,
                paper_index_bytes=paper.get(layer.name),
                op=ops.get(layer.node),
                lowering=planned.choice if planned is not None else None,
                why=planned.why if planned is not None else None,
                measured=planned.measured if planned is not None else False,
                candidates=planned.candidates if planned is not None else {},
                spread=planned.spread if planned is not None else {},
                inapplicable=planned.inapplicable if planned is not None else {},
            )
        )
    return records


def plan_record(made: EngineGraph, *, forced: bool, threads: int | None) -> PlanRecord:
    """How ``engine.onnx`` came about."""
    plan, dead = made.plan, made.dead
    before, after = made.dead_times or (None, None)
    return PlanRecord(
        status="forced" if forced else "measured" if plan.measured else "unmeasured",
        threads=threads,
        dense=timing_record(plan.dense_ms),
        planned=timing_record(plan.planned_ms),
        dead=DeadRecord(
            filters=dead.filters,
            channels=dead.channels,
            params=dead.params,
            macs=dead.macs,
            layers=[RemovedRecord(**asdict(part)) for part in dead.layers],
            before=timing_record(before),
            after=timing_record(after),
        ),
        gathers=GatherRecord(**asdict(made.gathers)),
        notes=list(made.notes),
    )


def tensorrt_record(request: BuildRequest, result: BuildResult) -> TensorRTRecord:
    """What was asked of TensorRT's builder, and the plugins that the engine holds."""
    gpus = find_gpus().gpus
    options = {name: value for name, value in asdict(request.trt).items() if name != "timing_cache"}
    return TensorRTRecord(
        **options,
        plugin_layers=result.plugin_layers,
        plugin_library=sha256(request.plugins.read_bytes()).hexdigest() if request.plugins is not None else None,
        gpu=gpus[0].name if gpus else None,
        optimization_level=request.optimization_level,
    )

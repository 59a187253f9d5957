"""The parts of a bundle's manifest that say what a build did: layers, plan, TensorRT options, the paper's counting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
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
from trtkp.graph.counting import batch_norm_elements, elementwise_operations, product_weights, statistics
from trtkp.index.accounting import Accounting
from trtkp.index.index_set import IndexSet
from trtkp.machine.gpu import find_gpus
from trtkp.pruning.method import Counting, Method
from trtkp.shapes import Profile, Shape, smallest_samples

if TYPE_CHECKING:
    import onnx_ir as ir

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


def paper_counts(method: Method, source: SourceModel, profile: Profile, accounting: Accounting) -> PaperCounts | None:
    """The net as the authors of a method count it; None if that is unknown or if they count as we do.

    Args:
        method: the method.
        source: the model.
        profile: shapes of its inputs.
        accounting: our own counts.
    """

    def counted(counting: Counting) -> PaperCounts:
        params, flops = accounting.params, accounting.macs
        return PaperCounts(
            counting=counting.name,
            dense_params=params.dense + counting.params,
            retained_params=params.retained + counting.params,
            dense_flops=flops.dense + counting.flops,
            retained_flops=flops.retained + counting.flops,
            other=counted(counting.other) if counting.other is not None else None,
        )

    counting = method.paper_counting(accounting.params.dense, _Counts(source, profile))
    return counted(counting) if counting is not None else None


@dataclass(frozen=True, eq=False)
class _Counts:
    """`trtkp.pruning.method.NetCounts` of a source's graph, for one sample."""

    source: SourceModel
    profile: Profile

    @cached_property
    def _graph(self) -> ir.Model:
        return self.source.graph()

    @property
    def _shapes(self) -> dict[str, Shape]:
        return smallest_samples(self.source.inputs, self.profile)

    def product_weights(self) -> int:
        return product_weights(self._graph)

    def statistics(self) -> int:
        return statistics(self._graph)

    def batch_norm_elements(self) -> int:
        return batch_norm_elements(self._graph, self._shapes)

    def elementwise_operations(self) -> int:
        return elementwise_operations(self._graph, self._shapes)


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
    """The record of each convolution, in the order of the layer table.

    Args:
        table: the net's convolutions.
        accounting: counts of these convolutions.
        index_sets: index sets, by parameter name.
        plan: the plan of the packed nodes.
        ops: name of each packed node to its operator in ``model.onnx``.
        paper: index bytes in the format of the method's paper, by parameter name.
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
    """How ``engine.onnx`` was made.

    Args:
        made: the graph and its plan.
        forced: whether the user asked for one lowering.
        threads: CPU threads of ONNX Runtime, as the user gave them.
    """
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
    """The options that TensorRT's builder was given, and the plugins in the engine."""
    gpu = find_gpus().gpu(request.device)
    options = {name: value for name, value in asdict(request.trt).items() if name != "timing_cache"}
    options["tune_batches"] = list(request.trt.tune_batches)
    options["embed_plugins"] = request.trt.embed_plugins and request.plugins is not None  # where the net needs none
    return TensorRTRecord(
        **options,
        plugin_layers=result.plugin_layers,
        plugin_library=sha256(request.plugins.read_bytes()).hexdigest() if request.plugins is not None else None,
        sparse=request.sparse,
        carried_libraries=list(result.carried_libraries),
        gpu=gpu.name if gpu is not None else None,
        optimization_level=request.optimization_level,
    )

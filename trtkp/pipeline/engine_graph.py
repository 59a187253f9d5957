"""From the masked dense net to ``engine.onnx``: remove dead parts → pack → plan → write lowerings → fold Gathers."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from trtkp.graph.edit import ints
from trtkp.graph.layers import LayerTable
from trtkp.graph.ops import OpName
from trtkp.graph.passes.channel_order import FoldedGathers, fold_channel_gathers
from trtkp.graph.passes.dead import DeadParts, remove_dead
from trtkp.graph.passes.pack import pack_convolutions, packed_nodes
from trtkp.index.index_set import IndexSet
from trtkp.machine.timing import Timing
from trtkp.plan.pins import predicted_pins, write_pins
from trtkp.plan.planner import NET_TIME_LIMIT_S, Plan, PlanRequest, make_plan
from trtkp.plan.race import apply_plan, race
from trtkp.shapes import Shape

__all__ = ["EngineGraph", "make_engine_graph"]


@dataclass(frozen=True)
class EngineGraph:
    """``engine.onnx`` and how it was made.

    Attributes:
        model: the graph, in standard operators, and in packed operators where a plugin computes them.
        plan: the plan of the layers that are left.
        dead: filters and channels that were removed before the layers were packed.
        dead_times: times of the whole net before and after that removal; None if it was not timed.
        gathers: the Gathers of channels that the lowerings wrote, and those that could not be folded.
        notes: remarks for the user, one line each.
    """

    model: ir.Model
    plan: Plan
    dead: DeadParts
    gathers: FoldedGathers
    dead_times: tuple[Timing, Timing] | None = None
    notes: tuple[str, ...] = ()


def make_engine_graph(
    dense: ir.Model,
    index_sets: Mapping[str, IndexSet],
    table: LayerTable,
    shapes: Mapping[str, Shape],
    request: PlanRequest,
) -> EngineGraph:
    """Plan a net, and write each layer in its lowering.

    Args:
        dense: the masked graph with batch normalisation folded; not changed.
        index_sets: index sets of the source's weights, by parameter name.
        table: the net's convolutions.
        shapes: input name to the shape to plan for, the profile's ``opt``.
        request: how to plan. If it measures, the net without its dead parts is timed too; if its target has plugins,
            lists are packed for the tiles of the kernels.
    """
    rest = dense.clone()
    places = {layer.node: layer.repeats * prod(layer.output_size) for layer in table.layers}
    dead = remove_dead(rest, places) if index_sets else DeadParts((), {})
    times, notes = None, []
    if dead.layers and request.measure and request.only is None:
        # the smaller net is not always the faster one, so both are timed
        raced = race({"before": dense, "after": rest}, shapes, request.threads, NET_TIME_LIMIT_S, request.target)
        times = raced["before"], raced["after"]
        if times[1].median_ms > times[0].median_ms:
            notes.append(
                f"filters and channels that nothing reads were kept: the net takes {times[1].median_ms:.3f} ms "
                f"without them and {times[0].median_ms:.3f} ms with them"
            )
            dead = DeadParts((), {})
    if dead.layers:
        index_sets = dead.restrict(rest, index_sets)
    else:
        rest = dense.clone()
    sizes = {layer.node: layer.input_size for layer in table.layers}
    packed, tiles = rest.clone(), request.has_plugins
    pack_convolutions(packed, index_sets, sizes, tiles=tiles)
    value_shapes = _value_shapes(packed, table, shapes)
    target = request.target
    # A pin is for one batch size; where the engine is tuned for several, TensorRT chooses for each.
    tuned = target is not None and target.trt is not None and bool(target.trt.tune_batches)
    pinned = target is not None and request.has_plugins and not tuned
    pins = predicted_pins(packed, value_shapes, target) if target is not None and pinned else {}
    write_pins(packed, pins)  # engines that are timed are built like the one that is kept
    plan = make_plan(packed, shapes, value_shapes, request)
    del packed
    gc.collect()  # it is as large as what the lists keep of the net, and lowering makes as much again
    leaving = {node: choice for node, choice in plan.choices.items() if choice != "dense"}
    pack_convolutions(rest, index_sets, sizes, only=leaving.keys(), tiles=tiles)
    write_pins(rest, pins)
    engine = apply_plan(rest, leaving)
    gathers = fold_channel_gathers(engine)
    return EngineGraph(engine, plan, dead, gathers, times, tuple(notes) + plan.notes)


def _value_shapes(packed: ir.Model, table: LayerTable, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Shapes of the values that packed nodes read and write.

    The layer table has the sizes of the whole net; after the removal of dead parts there may be fewer channels.
    """
    batch = shapes[table.batch_input][0] if table.batch_input is not None else 1
    layers = {layer.node: layer for layer in table.layers}
    found: dict[str, Shape] = {}
    for node in packed_nodes(packed):
        layer = layers[str(node.name)]
        count, (filters, channels, *_) = batch * layer.repeats, ints(node, "weight_shape", ())
        groups = node.attributes.get_int("group", 1)
        target = (count, filters, *layer.output_size)
        found[_name(node.inputs[0])] = (count, channels * groups, *layer.input_size)
        found[_name(node.outputs[0])] = target
        if OpName.parse(node.op_type).residual:
            found[_name(node.inputs[6])] = target
    return found


def _name(value: ir.Value | None) -> str:
    assert value is not None
    return str(value.name)

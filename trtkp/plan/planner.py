"""Choose the fastest exact form of every packed layer, and keep the whole net no slower than dense.

Where the engine can run here, the candidates of each layer are timed against each other, in turn, at the shapes of the
profile's ``opt``; then the whole net is timed against the dense one. Where it cannot, predictions decide (`lowerings`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from hashlib import sha256

import numpy as np
import onnx_ir as ir

from trtkp.engine.feeds import random_feeds
from trtkp.errors import InputError
from trtkp.graph.channel_order import fold_channel_gathers
from trtkp.graph.edit import finish, replace_nodes, weight_name
from trtkp.graph.packing import PackedConv
from trtkp.graph.rewrite import packed_nodes, read_packed
from trtkp.plan.cost import predicted_time
from trtkp.plan.lowerings import LOWERINGS, lower
from trtkp.shapes import Shape
from trtkp.timing import Timing, time_interleaved

__all__ = ["MEASURED_GAIN", "PREDICTED_GAIN", "LayerPlan", "Plan", "apply_plan", "make_plan", "race"]

#: A layer leaves dense for a measured gain of at least this; less is noise.
MEASURED_GAIN = 1.03
#: And for a predicted gain of at least this: predictions are rough.
PREDICTED_GAIN = 1.2

#: Seconds that the timing of one distinct layer, and of the whole net, may take.
LAYER_BUDGET_S, NET_BUDGET_S = 0.6, 4.0
WARMUP, RUNS = 3, 30


@dataclass(frozen=True)
class LayerPlan:
    """What was weighed for one packed node, and what was chosen.

    ``candidates`` maps a lowering to its median time in ms (measured) or to its share of the dense time (predicted).
    """

    name: str
    node: str
    choice: str
    why: str
    measured: bool
    candidates: dict[str, float]
    inapplicable: dict[str, str]


@dataclass(frozen=True)
class Plan:
    """One `LayerPlan` per packed node, in graph order, and the whole net's times where they were measured."""

    layers: tuple[LayerPlan, ...] = ()
    measured: bool = False
    dense_ms: Timing | None = None
    planned_ms: Timing | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def choices(self) -> dict[str, str]:
        """Node name to lowering."""
        return {layer.node: layer.choice for layer in self.layers}


def make_plan(
    model: ir.Model,
    shapes: Mapping[str, Shape],
    value_shapes: Mapping[str, Shape],
    *,
    measure: bool,
    threads: int | None = None,
    only: str | Mapping[str, str] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Plan:
    """Plan a packed model.

    Args:
        model: with nodes of domain ``trtkp``; not changed.
        shapes: input name to the shape that counts, the profile's ``opt``.
        value_shapes: shape of every packed node's inputs and outputs at ``shapes``.
        measure: time candidates in ONNX Runtime; else predict.
        threads: of ONNX Runtime.
        only: use this lowering, or each layer's by its name, wherever it applies, dense elsewhere, with nothing timed.
        progress: called with a phase, the layers done and the layers in all.

    Raises:
        InputError: ``only`` names no lowering.
    """
    for wanted in [only] if isinstance(only, str) else (only or {}).values():
        if wanted not in LOWERINGS:
            raise InputError(f"--lowering {wanted}: not known", remedy=f"use one of auto, {', '.join(LOWERINGS)}")
    nodes = packed_nodes(model)
    timed: dict[str, LayerPlan] = {}
    layers = []
    for done, node in enumerate(nodes):
        if progress is not None:
            progress("Planning layers", done, len(nodes))
        _, packed = read_packed(node)
        reasons = {name: reason for name, low in LOWERINGS.items() if (reason := low.applies(packed)) is not None}
        names = [name for name in LOWERINGS if name not in reasons]
        if only is not None:
            wanted = only if isinstance(only, str) else only.get(weight_name(node) or "", "dense")
            layer = _forced(wanted, reasons)
        elif not measure or len(names) == 1:
            layer = _predicted(node, names, packed, value_shapes, reasons)
        else:
            key = _key(node, packed, value_shapes)
            if key not in timed:
                timed[key] = _measured(node, names, value_shapes, threads, reasons)
            layer = timed[key]
        layers.append(replace(layer, name=weight_name(node) or "", node=str(node.name)))
    if progress is not None and nodes:
        progress("Planning layers", len(nodes), len(nodes))
    plan = Plan(tuple(layers), measured=measure and only is None)
    return _checked_whole(model, plan, shapes, threads) if plan.measured else plan


def apply_plan(model: ir.Model, choices: Mapping[str, str]) -> ir.Model:
    """A copy of a packed model in standard operators alone, each node in the chosen form."""
    lowered = model.clone()
    for node in packed_nodes(lowered):
        nodes, output = lower(node, lowered.graph, LOWERINGS[choices[str(node.name)]])
        replace_nodes([node], nodes, node.outputs[0], output)
    finish(lowered)
    lowered.graph.opset_imports.pop("trtkp", None)
    return lowered


def _forced(only: str, reasons: Mapping[str, str]) -> LayerPlan:
    choice = "dense" if only in reasons else only
    why = f"{only} does not apply: {reasons[only]}" if only in reasons else "asked for"
    return LayerPlan("", "", choice, why, False, {}, dict(reasons))


def _predicted(
    node: ir.Node,
    names: Sequence[str],
    packed: PackedConv,
    value_shapes: Mapping[str, Shape],
    reasons: Mapping[str, str],
) -> LayerPlan:
    source, target = (value_shapes[str(value.name)] for value in (node.inputs[0], node.outputs[0]) if value is not None)
    itemsize = packed.weight.dtype.itemsize
    times = {
        name: predicted_time(LOWERINGS[name].work(packed), packed.weight_shape, source, target, itemsize)
        for name in names
    }
    costs = {name: round(time / times["dense"], 4) for name, time in times.items()}
    best = min(costs, key=lambda name: (costs[name], name != "dense"))
    if len(names) == 1:
        return LayerPlan("", "", "dense", "no other form applies", False, costs, dict(reasons))
    if best == "dense" or costs["dense"] / costs[best] < PREDICTED_GAIN:
        why = f"predicted gain of {best} is below {PREDICTED_GAIN}" if best != "dense" else "predicted fastest"
        return LayerPlan("", "", "dense", why, False, costs, dict(reasons))
    return LayerPlan(
        "", "", best, f"predicted {costs['dense'] / costs[best]:.2f} times dense", False, costs, dict(reasons)
    )


def _measured(
    node: ir.Node,
    names: Sequence[str],
    value_shapes: Mapping[str, Shape],
    threads: int | None,
    reasons: Mapping[str, str],
) -> LayerPlan:
    models = {name: _single_layer(node, name, value_shapes) for name in names}
    times = race(models, value_shapes, threads, LAYER_BUDGET_S)
    medians = {name: round(times[name].median_ms, 6) for name in names}
    best = min(medians, key=lambda name: medians[name])
    gain = medians["dense"] / medians[best]
    if best == "dense" or gain < MEASURED_GAIN:
        why = "fastest" if best == "dense" else f"{best} gains {gain:.2f}, less than {MEASURED_GAIN}"
        return LayerPlan("", "", "dense", why, True, medians, dict(reasons))
    return LayerPlan("", "", best, f"{gain:.2f} times dense", True, medians, dict(reasons))


def _checked_whole(model: ir.Model, plan: Plan, shapes: Mapping[str, Shape], threads: int | None) -> Plan:
    """Time the planned net against the dense one; dense everywhere where the plan does not win."""
    everything_dense = {str(node.name): "dense" for node in packed_nodes(model)}
    if plan.choices == everything_dense:
        return plan
    models = {"dense": apply_plan(model, everything_dense), "planned": apply_plan(model, plan.choices)}
    fold_channel_gathers(models["planned"])  # as in engine.onnx
    times = race(models, shapes, threads, NET_BUDGET_S)
    if times["planned"].median_ms <= times["dense"].median_ms:
        return replace(plan, dense_ms=times["dense"], planned_ms=times["planned"])
    why = (
        f"the planned net took {times['planned'].median_ms:.3f} ms, the dense one {times['dense'].median_ms:.3f} ms: "
        "every layer stays dense"
    )
    layers = tuple(
        layer if layer.choice == "dense" else replace(layer, choice="dense", why=f"{layer.choice} won alone, but {why}")
        for layer in plan.layers
    )
    return replace(plan, layers=layers, dense_ms=times["dense"], planned_ms=times["dense"], notes=(why,))


def race(
    models: Mapping[str, ir.Model], shapes: Mapping[str, Shape], threads: int | None, budget_s: float
) -> dict[str, Timing]:
    """Times of several models on the same random inputs, in turn."""
    from trtkp.engine.onnxruntime import OrtRunner

    with ExitStack() as stack:
        calls = {}
        for name, model in models.items():
            runner = stack.enter_context(OrtRunner(ir.to_proto(model), threads=threads))
            feeds = random_feeds(runner.inputs, shapes, seed=0)
            calls[name] = lambda runner=runner, feeds=feeds: runner.run(feeds)
        return time_interleaved(calls, warmup=WARMUP, runs=RUNS, budget_s=budget_s)


def _single_layer(node: ir.Node, lowering: str, value_shapes: Mapping[str, Shape]) -> ir.Model:
    """A model of one packed node in one form, at fixed shapes."""
    constants = {}
    sources = {}
    weight = node.inputs[1]
    assert weight is not None
    assert weight.dtype is not None
    kind = weight.dtype  # that of X and Y as well, whose own may not be known
    for value in node.inputs:
        assert value is not None
        assert value.name is not None
        if value.const_value is not None:
            constants[value] = ir.val(value.name, value.dtype, value.shape, const_value=value.const_value)
        else:
            sources[value] = ir.val(value.name, kind, value_shapes[value.name])
    known = constants | sources
    copy = ir.Node(
        node.domain, node.op_type, [known[v] for v in node.inputs if v is not None], node.attributes.values(),
        name=node.name, metadata_props=dict(node.metadata_props),
    )  # fmt: skip
    before, output = node.outputs[0], copy.outputs[0]
    output.name, output.dtype = before.name, kind
    output.shape = ir.Shape(value_shapes[str(before.name)])
    graph = ir.Graph(
        list(sources.values()), [output], nodes=[copy], initializers=list(constants.values()),
        opset_imports={"": 18, node.domain: 1}, name="layer",
    )  # fmt: skip
    return apply_plan(ir.Model(graph, ir_version=10), {str(node.name): lowering})


def _key(node: ir.Node, packed: PackedConv, value_shapes: Mapping[str, Shape]) -> str:
    """Layers with equal keys take the same time: geometry, lists and shapes, not weights."""
    digest = sha256()
    for array in (packed.index, packed.row_group, packed.filters):
        digest.update(np.ascontiguousarray(array).tobytes())
    shape = value_shapes[str(node.inputs[0].name)] if node.inputs[0] is not None else ()
    attributes = sorted((name, str(attribute.value)) for name, attribute in node.attributes.items())
    digest.update(repr((node.op_type, shape, str(packed.weight.dtype), attributes)).encode())
    return digest.hexdigest()

"""Choose the fastest exact form of every packed layer, and keep the whole net no slower than dense.

Where the engine can run here, the candidates of each layer are timed against each other, in turn, at the shapes of the
profile's ``opt``; then the whole net is timed against the dense one, and layers that won alone but do not pay in the
net go back to dense. Where it cannot run, predictions decide (`trtkp.plan.cost`). An engine of TensorRT has one form
more, the packed operator as a plugin (`trtkp.plan.target`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import onnx_ir as ir

from trtkp.errors import InputError
from trtkp.graph.edit import weight_name
from trtkp.graph.packing import PackedConv
from trtkp.graph.passes.channel_order import fold_channel_gathers
from trtkp.graph.passes.pack import packed_nodes, read_packed
from trtkp.machine.timing import Timing
from trtkp.plan.cache import TimingCache
from trtkp.plan.cost import CPU, GPU, predicted_time
from trtkp.plan.lowerings import LOWERINGS, PLUGIN
from trtkp.plan.race import LAYER_BUDGET_S, apply_plan, race, race_layer
from trtkp.shapes import Shape

if TYPE_CHECKING:
    from trtkp.plan.target import EngineTarget

__all__ = ["MEASURED_GAIN", "PREDICTED_GAIN", "LayerPlan", "Plan", "apply_plan", "make_plan", "weigh"]

#: A layer leaves dense for a measured gain of at least this; less is noise.
MEASURED_GAIN = 1.03
#: And for a predicted gain of at least this: predictions are rough.
PREDICTED_GAIN = 1.2

#: Of a layer's forms, this many are timed beside dense: those predicted fastest, if not this much slower than dense.
MAX_TIMED, WORTH_TIMING = 4, 1.3
#: The whole net is as fast as the layers' gains say if it is within this share of it.
SLACK = 0.05
#: Seconds that one race of the whole net may take, and all that look for a faster subset of the choices.
NET_BUDGET_S, SUBSET_BUDGET_S = 4.0, 20.0


@dataclass(frozen=True)
class LayerPlan:
    """What was weighed for one packed node, and what was chosen.

    ``candidates`` maps a lowering to its median time in ms (measured) or to its share of the dense time (predicted);
    ``spread`` to the 10th and 90th percentile in ms where it was measured.
    """

    name: str
    node: str
    choice: str
    why: str
    measured: bool
    candidates: dict[str, float]
    inapplicable: dict[str, str]
    spread: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def gain_ms(self) -> float:
        """Milliseconds that the choice saves against dense, where it was measured."""
        return self.candidates["dense"] - self.candidates[self.choice] if self.measured else 0.0


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
    cache: TimingCache | None = None,
    target: EngineTarget | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Plan:
    """Plan a packed model.

    Args:
        model: with nodes of domain ``trtkp``; not changed.
        shapes: input name to the shape that counts, the profile's ``opt``.
        value_shapes: shape of every packed node's inputs and outputs at ``shapes``.
        measure: time candidates, in ONNX Runtime or on the target's GPU; else predict.
        threads: of ONNX Runtime.
        only: use this lowering, or each layer's by its name, wherever it applies, dense elsewhere, with nothing timed.
        cache: of layers' times; None times every layer anew (layers of equal structure once).
        target: the GPU of a TensorRT engine, and its plugins.
        progress: called with a phase, the layers done and the layers in all.

    Raises:
        InputError: ``only`` names no lowering, or the plugins where there are none.
    """
    has_plugins = target is not None and target.library is not None
    forms = [*LOWERINGS, *([PLUGIN] if has_plugins else [])]
    for wanted in [only] if isinstance(only, str) else (only or {}).values():
        if wanted == PLUGIN and not has_plugins:
            raise InputError(
                "--lowering plugin: only the backend tensorrt has it, with the plugin library",
                remedy="see trtkp doctor",
            )
        if wanted not in forms:
            raise InputError(f"--lowering {wanted}: not known", remedy=f"use one of auto, {', '.join(forms)}")
    nodes = packed_nodes(model)
    cache = cache if cache is not None else TimingCache.in_memory()
    layers = []
    for done, node in enumerate(nodes):
        if progress is not None:
            progress("Planning layers", done, len(nodes))
        if only is not None:
            wanted = only if isinstance(only, str) else only.get(weight_name(node) or "", "dense")
            layers.append(_named(_forced(wanted, read_packed(node)[1]), node))
        else:
            layers.append(weigh(node, value_shapes, measure=measure, threads=threads, cache=cache, target=target))
    if progress is not None and nodes:
        progress("Planning layers", len(nodes), len(nodes))
    plan = Plan(tuple(layers), measured=measure and only is None)
    return _checked_whole(model, plan, shapes, threads, target, progress) if plan.measured else plan


def weigh(
    node: ir.Node,
    value_shapes: Mapping[str, Shape],
    *,
    measure: bool,
    threads: int | None,
    cache: TimingCache,
    budget_s: float = LAYER_BUDGET_S,
    target: EngineTarget | None = None,
) -> LayerPlan:
    """Weigh the forms of one packed node; see `make_plan`."""
    _, packed = read_packed(node)
    reasons = {name: reason for name, low in LOWERINGS.items() if (reason := low.applies(packed)) is not None}
    costs = _predictions(node, packed, reasons, value_shapes, measure=measure, target=target)
    if len(costs) == 1:
        return _named(LayerPlan("", "", "dense", "no other form applies", False, costs, reasons), node)
    if not measure:
        return _named(_by_prediction(costs, reasons), node)
    hopeful = sorted((name for name in costs if name != "dense"), key=lambda name: costs[name])
    timed = ["dense", *(name for name in hopeful[:MAX_TIMED] if costs[name] <= WORTH_TIMING)]
    reasons |= {
        name: f"predicted {costs[name]:.2f} times the dense time, not timed" for name in hopeful if name not in timed
    }
    if len(timed) == 1:
        return _named(LayerPlan("", "", "dense", "no other form is worth timing", False, {"dense": 1.0}, reasons), node)
    timed.sort(key=[*LOWERINGS, PLUGIN].index)
    failed: dict[str, str] = {}
    times = race_layer(node, timed, value_shapes, threads, cache, budget_s, target, failed)
    reasons |= {name: f"cannot be built: {failed.get(name, 'as another')}" for name in timed if name not in times}
    return _named(_by_time(times, reasons), node)


def _named(layer: LayerPlan, node: ir.Node) -> LayerPlan:
    return replace(layer, name=weight_name(node) or "", node=str(node.name))


def _forced(only: str, packed: PackedConv) -> LayerPlan:
    if only == PLUGIN:
        return LayerPlan("", "", PLUGIN, "asked for", False, {}, {})
    reasons = {name: reason for name, low in LOWERINGS.items() if (reason := low.applies(packed)) is not None}
    choice = "dense" if only in reasons else only
    why = f"{only} does not apply: {reasons[only]}" if only in reasons else "asked for"
    return LayerPlan("", "", choice, why, False, {}, reasons)


def _predictions(
    node: ir.Node,
    packed: PackedConv,
    reasons: dict[str, str],
    value_shapes: Mapping[str, Shape],
    *,
    measure: bool,
    target: EngineTarget | None,
) -> dict[str, float]:
    """Predicted times of the forms that ``reasons`` leave, as shares of the dense one, where the layer runs.

    With a target ``reasons`` get why the plugin does not apply.
    """
    read, written = (value_shapes[str(value.name)] for value in (node.inputs[0], node.outputs[0]) if value is not None)
    itemsize = packed.weight.dtype.itemsize
    machine = CPU if measure else GPU[itemsize]
    if target is not None:
        from trtkp.plan.target import machine_of

        machine = machine_of(target.gpu, itemsize)
    times = {
        name: predicted_time(lowering.work(packed), packed.weight_shape, read, written, itemsize, machine)
        for name, lowering in LOWERINGS.items()
        if name not in reasons
    }
    if target is not None:
        try:
            times[PLUGIN] = target.plugin_seconds(node, packed, read, written)
        except InputError as error:
            reasons[PLUGIN] = error.message
    return {name: round(seconds / times["dense"], 4) for name, seconds in times.items()}


def _by_prediction(costs: dict[str, float], reasons: dict[str, str]) -> LayerPlan:
    best = min(costs, key=lambda name: (costs[name], name != "dense"))
    gain = 1 / costs[best]
    if best == "dense" or gain < PREDICTED_GAIN:
        why = f"predicted gain of {best} is below {PREDICTED_GAIN}" if best != "dense" else "predicted fastest"
        return LayerPlan("", "", "dense", why, False, costs, reasons)
    return LayerPlan("", "", best, f"predicted {gain:.2f} times dense", False, costs, reasons)


def _by_time(times: Mapping[str, Timing], reasons: dict[str, str]) -> LayerPlan:
    medians = {name: round(timing.median_ms, 6) for name, timing in times.items()}
    spread = {name: (round(timing.p10_ms, 6), round(timing.p90_ms, 6)) for name, timing in times.items()}
    best = min(medians, key=lambda name: medians[name])
    gain = times[best].gain_over(times["dense"])
    choice, why = best, f"{gain:.2f} times dense"
    if best == "dense" or gain < MEASURED_GAIN:
        choice = "dense"
        why = "fastest" if best == "dense" else f"{best} gains {gain:.2f}, less than {MEASURED_GAIN}"
    return LayerPlan("", "", choice, why, True, medians, reasons, spread)


def _checked_whole(
    model: ir.Model,
    plan: Plan,
    shapes: Mapping[str, Shape],
    threads: int | None,
    target: EngineTarget | None,
    progress: Callable[[str, int, int], None] | None,
) -> Plan:
    """Time the planned net against the dense one, and leave out what does not pay in the net."""
    leaving = [layer for layer in plan.layers if layer.choice != "dense"]
    if not leaving:
        return plan
    if progress is not None:
        progress("Timing the net", 0, 1)
    search = _Search(model, shapes, threads, target)
    everything = [layer.node for layer in sorted(leaving, key=_relative_gain, reverse=True)]
    dense, planned = search.time(plan, everything)
    expected = dense.median_ms - sum(layer.gain_ms for layer in leaving)
    kept = everything
    if planned.median_ms > min(dense.median_ms, max(expected, 0) + SLACK * dense.median_ms):
        kept = search.fewer(plan, everything, planned.gain_over(dense))
        dense, planned = search.time(plan, kept)  # anew: the best of many races flatters its net
    if planned.gain_over(dense) < 1:
        kept = []
    return _reduced(plan, everything, kept, dense, planned)


def _relative_gain(layer: LayerPlan) -> float:
    return layer.candidates["dense"] / layer.candidates[layer.choice]


def _reduced(plan: Plan, everything: Sequence[str], kept: Sequence[str], dense: Timing, planned: Timing) -> Plan:
    """The plan with only the kept nodes in their forms."""
    timed = replace(plan, dense_ms=dense, planned_ms=planned)
    if len(kept) == len(everything):
        return timed
    if kept:
        back = f"{len(everything) - len(kept)} of {len(everything)} packed layers"
        why = f"{back} go back to dense, the whole net is faster so"
    else:
        why = (
            f"the planned net took {planned.median_ms:.3f} ms, the dense one {dense.median_ms:.3f} ms: "
            "every layer stays dense"
        )
        timed = replace(timed, planned_ms=dense)
    layers = tuple(
        replace(layer, choice="dense", why=f"{layer.choice} won alone, but {why}")
        if layer.choice != "dense" and layer.node not in kept
        else layer
        for layer in plan.layers
    )
    return replace(timed, layers=layers, notes=(why,))


@dataclass
class _Search:
    """Races of the whole net with some of its layers in their forms."""

    model: ir.Model
    shapes: Mapping[str, Shape]
    threads: int | None
    target: EngineTarget | None = None

    def time(self, plan: Plan, nodes: Iterable[str]) -> tuple[Timing, Timing]:
        """Times of the dense net and of the one with these nodes in their forms."""
        chosen = set(nodes)
        choices = {node: choice if node in chosen else "dense" for node, choice in plan.choices.items()}
        models = {
            "dense": apply_plan(self.model, dict.fromkeys(choices, "dense")),
            "planned": apply_plan(self.model, choices),
        }
        fold_channel_gathers(models["planned"])  # as in engine.onnx
        times = race(models, self.shapes, self.threads, NET_BUDGET_S, self.target)
        return times["dense"], times["planned"]

    def fewer(self, plan: Plan, ordered: list[str], gain: float) -> list[str]:
        """Bisect for the number of layers, those of largest gain first, with which the net is fastest.

        Every subset runs against dense, so that gains are compared and not times of different moments.

        Args:
            plan: of all layers.
            ordered: nodes that left dense.
            gain: of the net with all of them.
        """
        best, kept = gain, ordered
        start, least, most = time.perf_counter(), 0, len(ordered)
        while most - least > 1 and time.perf_counter() - start < SUBSET_BUDGET_S:
            count = (least + most) // 2
            dense, planned = self.time(plan, ordered[:count])
            if planned.gain_over(dense) > best:
                best, kept, most = planned.gain_over(dense), ordered[:count], count
            else:
                least = count
        return kept

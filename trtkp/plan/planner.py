"""The planner: choose the fastest exact lowering of every packed layer, and keep the net no slower than dense.

Where the engine can run here, the planner measures. It times the candidates of each layer against each other, in turn,
at the shapes of the profile's ``opt``. Then it times the whole net against the dense one, and sends layers that won
alone but do not pay in the net back to dense. Where the engine cannot run, predictions decide (`trtkp.plan.cost`).

TensorRT engines have one more candidate: the packed operator itself, computed by a plugin (`trtkp.plan.target`).
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
from trtkp.plan.race import apply_plan, race, race_layer, race_layers
from trtkp.shapes import Shape

if TYPE_CHECKING:
    from trtkp.plan.target import EngineTarget

__all__ = ["MEASURED_GAIN", "PREDICTED_GAIN", "LayerPlan", "Plan", "PlanRequest", "apply_plan", "make_plan"]

#: A layer leaves dense for a measured speed-up of at least this. Less is noise: in ``benchmarks/results/packing.json``
#: layers that stayed dense measured 0.99 to 1.03 times their own dense time. The gain must show in the median *and* in
#: the 10th percentile (`Timing.gain_over`), so that a burst of background load does not decide.
MEASURED_GAIN = 1.03
#: A layer leaves dense for a predicted speed-up of at least this. Larger than the measured one, as the model uses round
#: figures of no particular GPU (`cost.GPU`).
PREDICTED_GAIN = 1.2

#: At most this many lowerings of a layer are timed beside dense, in the order of their predictions. A lowering that
#: is predicted to take more than `WORTH_TIMING` times the dense time is not timed: it would win only if the model were
#: wrong by 30 %.
MAX_TIMED, WORTH_TIMING = 4, 1.3
#: The planned net counts as fast as its layers promise if it misses by no more than this share of the dense net's time.
#: Beyond it, the planner looks for a smaller set of packed layers that is faster.
SLACK = 0.05
#: Seconds for one race of the whole net, and for the whole search for a faster subset of the packed layers.
NET_TIME_LIMIT_S, SUBSET_TIME_LIMIT_S = 4.0, 20.0


@dataclass(frozen=True)
class LayerPlan:
    """The candidates of one packed node, and the one that was chosen.

    Attributes:
        name: parameter name of the weight.
        node: name of the node in the graph.
        choice: name of the chosen lowering.
        why: the reason for the choice, for the user.
        measured: whether the candidates were timed.
        candidates: lowering to its median time in ms (measured), or to its share of the dense time (predicted).
        inapplicable: lowering to the reason why it is not a candidate.
        spread: lowering to the 10th and 90th percentile of its times in ms, where it was measured.
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
        """Milliseconds saved against dense; 0 where nothing was measured."""
        return self.candidates["dense"] - self.candidates[self.choice] if self.measured else 0.0


@dataclass(frozen=True)
class Plan:
    """The plan of a net.

    Attributes:
        layers: one `LayerPlan` per packed node, in graph order.
        measured: whether the planner measured (it then also timed the whole net, unless every layer stayed dense).
        dense_ms: time of the net with every layer dense.
        planned_ms: time of the net as planned.
        notes: what the user should know, such as how many layers went back to dense.
    """

    layers: tuple[LayerPlan, ...] = ()
    measured: bool = False
    dense_ms: Timing | None = None
    planned_ms: Timing | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def choices(self) -> dict[str, str]:
        """Node name to the name of the chosen lowering."""
        return {layer.node: layer.choice for layer in self.layers}


@dataclass(frozen=True)
class PlanRequest:
    """How to plan a net.

    Attributes:
        measure: time the candidates, in ONNX Runtime or on the target's GPU. False predicts.
        threads: threads of ONNX Runtime.
        only: one lowering for every layer, or a mapping from layer name to lowering. It is used wherever it applies,
            with dense elsewhere, and nothing is timed.
        cache: times of earlier builds. The default is empty, and times every distinct layer anew.
        target: the GPU of a TensorRT engine, and its plugins.
        progress: called with the phase, the number of layers done, and the number of layers.
    """

    measure: bool
    threads: int | None = None
    only: str | Mapping[str, str] | None = None
    cache: TimingCache = field(default_factory=TimingCache.in_memory)
    target: EngineTarget | None = None
    progress: Callable[[str, int, int], None] | None = None

    @property
    def has_plugins(self) -> bool:
        """Whether the packed operator itself is a candidate: the target has the plugin library."""
        return self.target is not None and self.target.library is not None

    def forced(self, layer: str) -> str | None:
        """The lowering that was asked for a layer; None if the planner chooses."""
        return self.only if self.only is None or isinstance(self.only, str) else self.only.get(layer, "dense")


def make_plan(
    model: ir.Model, shapes: Mapping[str, Shape], value_shapes: Mapping[str, Shape], request: PlanRequest
) -> Plan:
    """Plan a packed model.

    Args:
        model: the packed model, with nodes of domain ``trtkp``. It is not changed.
        shapes: input name to the shape to plan for, which is the profile's ``opt``.
        value_shapes: shape of every packed node's inputs and outputs at ``shapes``.
        request: how to plan.

    Raises:
        InputError: ``request.only`` names an unknown lowering, or ``plugin`` where there are no plugins.
    """
    _check_lowerings(request)
    nodes, progress = packed_nodes(model), request.progress
    found: list[LayerPlan | _Candidates] = []
    for done, node in enumerate(nodes):
        if progress is not None:
            progress("Planning layers", done, len(nodes))
        wanted = request.forced(weight_name(node) or "")
        if wanted is not None:
            found.append(_forced(wanted, read_packed(node)[1]))
        else:
            draft = _weigh(node, value_shapes, request)
            found.append(_timed_here(draft, value_shapes, request) if request.target is None else draft)
    layers = [
        _named(layer, node) for layer, node in zip(_timed_there(found, value_shapes, request), nodes, strict=True)
    ]
    if progress is not None and nodes:
        progress("Planning layers", len(nodes), len(nodes))
    plan = Plan(tuple(layers), measured=request.measure and request.only is None)
    return _checked_whole(model, plan, shapes, request) if plan.measured else plan


def _check_lowerings(request: PlanRequest) -> None:
    only = request.only
    known = [*LOWERINGS, *([PLUGIN] if request.has_plugins else [])]
    for wanted in [only] if isinstance(only, str) else (only or {}).values():
        if wanted == PLUGIN and not request.has_plugins:
            raise InputError(
                "--lowering plugin: only the backend tensorrt has it, with the plugin library",
                remedy="see trtkp doctor",
            )
        if wanted not in known:
            raise InputError(f"--lowering {wanted}: not known", remedy=f"use one of auto, {', '.join(known)}")


@dataclass(frozen=True)
class _Candidates:
    """Lowerings of one packed node that are worth timing, and the reasons against the others."""

    node: ir.Node
    names: list[str]
    reasons: dict[str, str]

    def decided(self, times: Mapping[str, Timing], failed: Mapping[str, str]) -> LayerPlan:
        built = {name: f"cannot be built: {failed[name]}" for name in self.names if name not in times}
        if (reason := built.pop("dense", None)) is not None:  # nothing to compare with, and no reason to end the build
            why = f"its dense form {reason}"
            return LayerPlan("", "", "dense", why, False, {"dense": 1.0}, self.reasons | built)
        return _by_time(times, self.reasons | built)


def _weigh(node: ir.Node, value_shapes: Mapping[str, Shape], request: PlanRequest) -> LayerPlan | _Candidates:
    """Predict all lowerings of one packed node. The plan is made if the promising ones need not be timed.

    Args:
        node: the packed node.
        value_shapes: shapes of its inputs and outputs.
        request: how to plan.
    """
    _, packed = read_packed(node)
    reasons = {name: reason for name, low in LOWERINGS.items() if (reason := low.applies(packed)) is not None}
    costs = _predictions(node, packed, reasons, value_shapes, request)
    if len(costs) == 1:
        return LayerPlan("", "", "dense", "no other lowering applies", False, costs, reasons)
    if not request.measure:
        return _by_prediction(costs, reasons)
    # In the order of the predictions, so that the time for measuring goes to the most promising candidates.
    hopeful = sorted((name for name in costs if name != "dense"), key=lambda name: costs[name])
    timed = ["dense", *(name for name in hopeful[:MAX_TIMED] if costs[name] <= WORTH_TIMING)]
    reasons |= {
        name: f"predicted {costs[name]:.2f} times the dense time, not timed" for name in hopeful if name not in timed
    }
    if len(timed) == 1:
        why = "no other lowering is worth timing"
        return LayerPlan("", "", "dense", why, False, {"dense": 1.0}, reasons)
    timed.sort(key=[*LOWERINGS, PLUGIN].index)  # the order of the table, in which the manifest lists candidates
    return _Candidates(node, timed, reasons)


def _timed_here(draft: LayerPlan | _Candidates, value_shapes: Mapping[str, Shape], request: PlanRequest) -> LayerPlan:
    """Time the candidates of one layer on this CPU."""
    if isinstance(draft, LayerPlan):
        return draft
    return draft.decided(race_layer(draft.node, draft.names, value_shapes, request.threads, request.cache), {})


def _timed_there(
    drafts: Sequence[LayerPlan | _Candidates], value_shapes: Mapping[str, Shape], request: PlanRequest
) -> list[LayerPlan]:
    """Time the candidates of all layers that have any on the target's GPU, together."""
    waiting = [draft for draft in drafts if isinstance(draft, _Candidates)]
    if not waiting:
        return [draft for draft in drafts if isinstance(draft, LayerPlan)]
    assert request.target is not None
    pairs = [(draft.node, draft.names) for draft in waiting]
    races = iter(race_layers(pairs, value_shapes, request.cache, request.target))
    return [
        draft if isinstance(draft, LayerPlan) else draft.decided((race := next(races)).times, race.failed)
        for draft in drafts
    ]


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
    request: PlanRequest,
) -> dict[str, float]:
    """The predicted time of every lowering that applies, as a share of the dense time.

    Args:
        node: the packed node.
        packed: its arrays.
        reasons: lowerings that do not apply; gets the reason why the plugin does not.
        value_shapes: shapes of the node's inputs and outputs.
        request: how to plan.
    """
    target = request.target
    read, written = (value_shapes[str(value.name)] for value in (node.inputs[0], node.outputs[0]) if value is not None)
    itemsize = packed.weight.dtype.itemsize
    machine = CPU if request.measure else GPU[itemsize]
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
            times[PLUGIN] = target.predicted_tactic(node, packed, read, written).seconds
        except InputError as error:
            reasons[PLUGIN] = error.message
    return {name: round(seconds / times["dense"], 4) for name, seconds in times.items()}


def _by_prediction(costs: dict[str, float], reasons: dict[str, str]) -> LayerPlan:
    # At equal cost dense wins.
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
    request: PlanRequest,
) -> Plan:
    """Time the planned net against the dense net, and send back to dense what does not pay there.

    A layer can win its own race and still lose in the net: its neighbours may have to change their memory layout, or
    lose a fusion, for it.
    """
    leaving = [layer for layer in plan.layers if layer.choice != "dense"]
    if not leaving:
        return plan
    if request.progress is not None:
        request.progress("Timing the net", 0, 1)
    # First the whole plan. Only if the net misses what its layers promise, a smaller set of packed layers is searched.
    search = _Search(model, shapes, request.threads, request.target)
    everything = [layer.node for layer in sorted(leaving, key=_relative_gain, reverse=True)]
    dense, planned = search.time(plan, everything)
    expected = dense.median_ms - sum(layer.gain_ms for layer in leaving)
    kept = everything
    if planned.median_ms > min(dense.median_ms, max(expected, 0) + SLACK * dense.median_ms):
        kept = search.fewer(plan, everything, planned.gain_over(dense))
        # Timed once more: the best of several noisy races looks better than it is.
        dense, planned = search.time(plan, kept)
    # No engine that was measured may be slower than the same graph with every layer dense.
    if planned.gain_over(dense) < 1:
        kept = []
    return _reduced(plan, everything, kept, dense, planned)


def _relative_gain(layer: LayerPlan) -> float:
    return layer.candidates["dense"] / layer.candidates[layer.choice]


def _reduced(plan: Plan, everything: Sequence[str], kept: Sequence[str], dense: Timing, planned: Timing) -> Plan:
    """The plan in which only the kept nodes leave dense; the others say why they went back."""
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
    """Times the whole net with different sets of its layers packed."""

    model: ir.Model
    shapes: Mapping[str, Shape]
    threads: int | None
    target: EngineTarget | None = None

    def time(self, plan: Plan, nodes: Iterable[str]) -> tuple[Timing, Timing]:
        """Times of the dense net, and of the net with these nodes in their chosen lowerings."""
        chosen = set(nodes)
        choices = {node: choice if node in chosen else "dense" for node, choice in plan.choices.items()}
        models = {
            "dense": apply_plan(self.model, dict.fromkeys(choices, "dense")),
            "planned": apply_plan(self.model, choices),
        }
        fold_channel_gathers(models["planned"])  # as the build does for engine.onnx
        times = race(models, self.shapes, self.threads, NET_TIME_LIMIT_S, self.target)
        return times["dense"], times["planned"]

    def fewer(self, plan: Plan, ordered: list[str], gain: float) -> list[str]:
        """The nodes to keep packed: bisects the length of the list of nodes, sorted by gain, for the fastest net.

        Every subset is timed against dense in the same race, because times of different moments cannot be compared.
        Bisection needs about log2(n) races; trying every subset, or every prefix, would take far longer than the build.

        Args:
            plan: the plan of all layers.
            ordered: nodes that left dense, largest relative gain first.
            gain: speed-up of the net with all of them packed.
        """
        best, kept = gain, ordered
        start, least, most = time.perf_counter(), 0, len(ordered)
        while most - least > 1 and time.perf_counter() - start < SUBSET_TIME_LIMIT_S:
            count = (least + most) // 2
            dense, planned = self.time(plan, ordered[:count])
            if planned.gain_over(dense) > best:
                best, kept, most = planned.gain_over(dense), ordered[:count], count
            else:
                least = count
        return kept

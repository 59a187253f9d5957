"""Races: time the lowerings of a layer, or several versions of a net, against each other on the same inputs.

A race runs in ONNX Runtime on this CPU, or as TensorRT engines on a target's GPU, where the layers of a net are raced
together, in as few engines as hold them. The runs of a race alternate between the candidates (`trtkp.machine.timing`),
so only ratios within one race are meaningful.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass

from trtkp.engine.feeds import random_feeds
from trtkp.graph.edit import add_initializer, constant, finish, replace_nodes
from trtkp.graph.ops import DOMAIN, OpName, function
from trtkp.graph.passes.dynamic import expand_dynamic
from trtkp.graph.passes.pack import packed_nodes
from trtkp.graph.sparsity import holds_two_four
from trtkp.machine.timing import Timing, time_interleaved
from trtkp.plan.cache import TimingCache
from trtkp.plan.lowerings import LOWERINGS, PLUGIN, lower
from trtkp.shapes import Shape

if TYPE_CHECKING:
    from trtkp.plan.target import EngineTarget

__all__ = ["LayerRace", "apply_plan", "race", "race_cached", "race_layer", "race_layers", "single_layer", "structure"]

#: Seconds that the race of one distinct layer may take. A 10 ms layer in five lowerings gets nine timed rounds of it.
LAYER_TIME_LIMIT_S = 0.6
#: Untimed and timed rounds of a race, unless its time limit ends it earlier.
WARMUP, RUNS = 3, 30
#: Weights after which the layers that race together on a GPU begin another engine. Half of ResNet-50's layers in five
#: lowerings, fp16; the builder needs a few times as much memory.
MOST_WEIGHT_BYTES = 256 << 20


def apply_plan(model: ir.Model, choices: Mapping[str, str]) -> ir.Model:
    """A copy of a packed model in which every packed node is replaced by its chosen lowering.

    Args:
        model: the packed model. It is not changed.
        choices: node name to lowering. ``plugin`` leaves the packed node as it is.
    """
    lowered = model.clone()
    for node in packed_nodes(lowered):
        choice = choices[str(node.name)]
        if choice != PLUGIN:
            nodes, output = lower(node, lowered.graph, LOWERINGS[choice])
            replace_nodes([node], nodes, node.outputs[0], output)
    expand_dynamic(lowered)
    finish(lowered)
    NameFixPass()(lowered)  # a net that was an engine graph once has nodes of these names already
    if not any(node.domain == DOMAIN for node in lowered.graph):
        lowered.graph.opset_imports.pop(DOMAIN, None)
    return lowered


def race(
    models: Mapping[str, ir.Model],
    shapes: Mapping[str, Shape],
    threads: int | None,
    time_limit_s: float,
    target: EngineTarget | None = None,
) -> dict[str, Timing]:
    """Times of several models on the same random inputs, run in turn.

    Args:
        models: the models, by name.
        shapes: input name to shape.
        threads: threads of ONNX Runtime.
        time_limit_s: seconds after which no new round starts.
        target: the GPU to run on; None runs ONNX Runtime on this CPU.
    """
    if target is not None:
        return target.race(models, shapes, time_limit_s)
    from trtkp.engine.onnxruntime import OrtRunner

    with ExitStack() as stack:
        calls = {}
        for name, model in models.items():
            runner = stack.enter_context(OrtRunner(model, threads=threads))
            feeds = random_feeds(runner.inputs, shapes, seed=0)
            calls[name] = lambda runner=runner, feeds=feeds: runner.run(feeds)
        return time_interleaved(calls, warmup=WARMUP, runs=RUNS, time_limit_s=time_limit_s)


def race_layer(
    node: ir.Node,
    names: Sequence[str],
    value_shapes: Mapping[str, Shape],
    threads: int | None,
    cache: TimingCache,
    time_limit_s: float = LAYER_TIME_LIMIT_S,
) -> dict[str, Timing]:
    """Times of the named lowerings of one packed node on this CPU, each as a model of its own; see `race`."""
    models = {name: single_layer(node, name, value_shapes) for name in names}
    return race_cached(models, value_shapes, threads, cache, time_limit_s)


@dataclass
class LayerRace:
    """The race of one packed node on a target.

    Attributes:
        times: lowering to its time.
        failed: lowering to the reason why it has none.
    """

    times: dict[str, Timing] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def race_layers(
    layers: Sequence[tuple[ir.Node, Sequence[str]]],
    value_shapes: Mapping[str, Shape],
    cache: TimingCache,
    target: EngineTarget,
) -> list[LayerRace]:
    """Times of lowerings of many packed nodes on a target, through the timing cache.

    Layers of equal structure are timed once. The others share engines, of `MOST_WEIGHT_BYTES` each.

    Args:
        layers: packed nodes, and the names of the lowerings to time.
        value_shapes: shape of the nodes' inputs and outputs.
        cache: times of earlier builds.
        target: the GPU.

    Returns:
        A race for each layer, in their order.
    """
    known: dict[frozenset[str], LayerRace] = {}  # by the structures that raced, which name its times
    waiting: dict[frozenset[str], dict[str, ir.Model]] = {}

    def flush() -> None:
        slots = [(key, name) for key, models in waiting.items() for name in models]
        models = {f"slot{number}": waiting[key][name] for number, (key, name) in enumerate(slots)}
        failed: dict[str, str] = {}
        times = target.race_layers(models, value_shapes, LAYER_TIME_LIMIT_S * len(waiting), failed) if models else {}
        for number, (key, name) in enumerate(slots):
            race = known.setdefault(key, LayerRace())
            slot = f"slot{number}"
            if slot in times:
                race.times[name] = times[slot]
            else:
                race.failed[name] = failed[slot]
        for key in waiting:
            if not known[key].failed:  # the cache holds complete races only
                cache.put(known[key].times, None, target.identity)
        waiting.clear()

    structures = []
    for node, names in layers:
        models = {name: single_layer(node, name, value_shapes) for name in names}
        structures.append({name: structure(model) for name, model in models.items()})
        key = frozenset(structures[-1].values())
        if key in known or key in waiting:
            continue
        if (times := cache.get(key, None, target.identity)) is not None:
            known[key] = LayerRace(times)
            continue
        waiting[key] = {structures[-1][name]: model for name, model in models.items()}
        if sum(_weight_bytes(model) for race in waiting.values() for model in race.values()) >= MOST_WEIGHT_BYTES:
            flush()
    flush()
    return [_by_name(known[frozenset(found.values())], found) for found in structures]


def _by_name(race: LayerRace, structures: Mapping[str, str]) -> LayerRace:
    """A race with the names of one layer's lowerings in place of their structures."""
    return LayerRace(
        {name: race.times[key] for name, key in structures.items() if key in race.times},
        {name: race.failed[key] for name, key in structures.items() if key in race.failed},
    )


def _weight_bytes(model: ir.Model) -> int:
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)


def race_cached(
    models: Mapping[str, ir.Model],
    shapes: Mapping[str, Shape],
    threads: int | None,
    cache: TimingCache,
    time_limit_s: float,
) -> dict[str, Timing]:
    """`race` on this CPU, through the timing cache.

    Models of equal structure run once, and nothing runs if the same structures were timed against each other before.
    """
    structures = {name: structure(model) for name, model in models.items()}
    distinct: dict[str, ir.Model] = {}
    for name, key in structures.items():
        distinct.setdefault(key, models[name])
    times = cache.get(distinct, threads)
    if times is None:
        labels = {key: next(name for name in models if structures[name] == key) for key in distinct}
        timed = race({labels[key]: model for key, model in distinct.items()}, shapes, threads, time_limit_s)
        times = {key: timed[label] for key, label in labels.items()}
        cache.put(times, threads)
    return {name: times[key] for name, key in structures.items()}


def single_layer(node: ir.Node, lowering: str, value_shapes: Mapping[str, Shape]) -> ir.Model:
    """A model of one packed node in one lowering, at fixed shapes, between two convolutions that cost next to nothing.

    These stand for the layer's neighbours in the net. ONNX Runtime keeps activations between convolutions in a blocked
    layout (NCHWc), and a Gather needs them in NCHW, so the cost of converting between the two belongs to the lowering.
    """
    constants = {}
    sources = {}
    weight = node.inputs[1]
    assert weight is not None
    assert weight.dtype is not None
    kind = weight.dtype  # X and Y have the same type; their own may not be recorded in the graph
    for value in node.inputs:
        assert value is not None
        assert value.name is not None
        if value.const_value is not None:
            constants[value] = ir.val(value.name, value.dtype, value.shape, const_value=value.const_value)
        else:
            sources[value] = ir.val(value.name, kind, value_shapes[value.name])
    output = str(node.outputs[0].name)
    graph = ir.Graph(
        list(sources.values()), [], nodes=[], initializers=list(constants.values()),
        opset_imports={"": 18, node.domain: 1}, name="layer",
    )  # fmt: skip
    known = constants | {value: _neighbour(graph, source) for value, source in sources.items()}
    copy = ir.Node(
        node.domain, node.op_type, [known[v] for v in node.inputs if v is not None], node.attributes.values(),
        name=node.name, metadata_props=dict(node.metadata_props),
    )  # fmt: skip
    graph.append(copy)
    copy.outputs[0].name, copy.outputs[0].dtype = output, kind
    copy.outputs[0].shape = ir.Shape(value_shapes[output])
    graph.outputs.append(_neighbour(graph, copy.outputs[0]))
    model = ir.Model(graph, ir_version=10)
    if lowering == PLUGIN:
        body = function(OpName.parse(node.op_type), 18)
        model.functions[body.identifier()] = body
    return apply_plan(model, {str(node.name): lowering})


def _neighbour(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """The value after a depthwise 1x1 convolution with weights of 1."""
    assert value.shape is not None
    assert value.dtype is not None
    channels = value.shape[1]
    assert isinstance(channels, int)
    ones = add_initializer(graph, f"{value.name}/ones", np.ones((channels, 1, 1, 1), value.dtype.numpy()))
    node = ir.node("Conv", [value, ones], {"group": channels, "kernel_shape": [1, 1]}, name=f"{value.name}/neighbour")
    after = node.outputs[0]
    after.name, after.dtype, after.shape = f"{value.name}/after", value.dtype, value.shape
    graph.append(node)
    return after


def structure(model: ir.Model) -> str:
    """A hash of what a model's time depends on: operators, attributes, shapes and types, but neither names nor weights.

    That some weights are 2:4 counts, because TensorRT has kernels of its own for them. Which channels a Gather lists is
    left out, so layers that differ in their lists alone are timed once.
    """
    numbers: dict[ir.Value, int] = {}

    def told(value: ir.Value | None) -> object:
        array = constant(value)
        if array is None:
            return None if value is None else numbers.setdefault(value, len(numbers))
        # Short integer constants are pads, starts and ends, and change the work. Lists of channels are longer.
        exact = array.dtype.kind == "i" and array.size <= 8
        return (str(array.dtype), array.shape, array.tolist() if exact else None)

    text = [(told(value), str(value.dtype), str(value.shape)) for value in model.graph.inputs]
    nodes = [
        (
            node.op_type,
            sorted((name, str(attribute.value)) for name, attribute in node.attributes.items()),
            [told(value) for value in (*node.inputs, *node.outputs)],
        )
        for node in model.graph
    ]
    sparse = ("2:4",) if holds_two_four(model) else ()
    return sha256(repr((text, nodes, *sparse)).encode()).hexdigest()

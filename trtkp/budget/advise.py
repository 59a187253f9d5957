"""``trtkp advise``: before any training, which granularity and density would make which layer faster on this machine.

Each layer is given synthetic lists and timed against the dense layer in ONNX Runtime, in the lowering that the cost
model predicts to be the fastest. The time depends on the lengths of the lists and not on which channels they name, so
the result holds for any lists of that granularity and density.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import prod
from os import PathLike
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from pydantic import BaseModel, ConfigDict, ValidationError

from trtkp.budget.options import AdviceOptions
from trtkp.errors import InputError
from trtkp.files import read_file
from trtkp.graph.edit import add_initializer
from trtkp.graph.layers import conv_layers
from trtkp.graph.passes.pack import pack_convolutions, packed_nodes, read_packed
from trtkp.index.conv_layer import ConvLayer
from trtkp.index.index_set import from_mask
from trtkp.machine.cpu import cpu_name, usable_cores
from trtkp.model import load_model
from trtkp.plan.cache import TimingCache
from trtkp.plan.cost import CPU, predicted_time
from trtkp.plan.lowerings import LOWERINGS
from trtkp.plan.lowerings.gather import list_multiple
from trtkp.plan.planner import MEASURED_GAIN
from trtkp.plan.race import race_cached, single_layer
from trtkp.pruning.methods.vskp import VSKP
from trtkp.pruning.one_shot import select_layers
from trtkp.shapes import Shape, profile_from_options, smallest_samples

__all__ = ["DENSITIES", "FILTER_GROUPS", "Advice", "Granularity", "LayerAdvice", "Option", "advise"]

#: Shares of the weights that are kept.
DENSITIES = (0.75, 0.5, 0.35, 0.25)
#: Filters that share a list. One list for the whole layer is timed too.
FILTER_GROUPS = (256, 64, 32, 16)
#: A granularity is recommended if its speed-up reaches ``PAYS`` at some density and its mean speed-up is at least
#: ``NEARLY`` times that of the best granularity. Among these the finest wins: finer lists cost less accuracy.
PAYS, NEARLY = 1.1, 0.9
#: Least and most seconds to time the candidates of one layer.
_LEAST_S, _MOST_S = 0.3, 4.0
#: For stripes of a 3x3 kernel: rows and columns of the rectangle whose density is nearest (6/9, 4/9, 3/9, 2/9).
_TAPS = {0.75: (2, 3), 0.5: (2, 2), 0.35: (1, 3), 0.25: (1, 2)}

_FORMAT: Final = "trtkp.advice"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Granularity(_Record):
    """What is kept or removed together: whole kernels by filter group, or one rectangle of taps for the layer."""

    kind: Literal["kernel", "stripe"]
    filter_group: int
    """Filters that share a list."""
    channel_block: int = 1
    """Consecutive channels that are kept or removed together."""


class Option(_Record):
    """One granularity at one density, and its speed-up."""

    granularity: Granularity
    density: float
    """Share of the weights kept, after rounding to whole channels or taps."""
    wanted: float
    """The density before that rounding, one of `DENSITIES`."""
    speed_up: float
    """Time of the dense layer divided by the time of this one; 1.0 if a build would leave the layer dense."""
    lowering: str
    """The lowering that was timed, or ``dense``."""


class LayerAdvice(_Record):
    """One convolution: its dense time, its options, and the finest granularity with nearly the best speed-up."""

    shape: tuple[int, int, int, int]
    """F, C, R, S."""
    output_size: tuple[int, int]
    """Height and width."""
    dense_ms: float | None = None
    """Median time of the dense layer, in milliseconds; None if it was not timed."""
    share: float | None = None
    """``dense_ms`` as a share of that of all layers that were timed."""
    options: list[Option] = []
    recommended: Granularity | None = None
    reason: str | None = None
    """Why no granularity is recommended."""


class Advice(_Record):
    """The advice on a model, as ``--json`` prints it."""

    format: Literal["trtkp.advice"] = _FORMAT
    version: Literal[1] = 1
    model: str
    backend: Literal["onnxruntime"] = "onnxruntime"
    machine: str
    threads: int
    batch: int
    densities: list[float]
    layers: dict[str, LayerAdvice]
    left_out: dict[str, str]
    """Layers that would not be pruned, with the reason."""
    warnings: list[str] = []

    @classmethod
    def read(cls, file: Path) -> Advice:
        """Read advice from a file.

        Raises:
            InputError: the file cannot be read, or is not the output of ``trtkp advise --json``.
        """
        try:
            return cls.model_validate_json(read_file(file, "file of advice"))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise InputError(
                f"not advice, {where}: {first['msg']}", file=file, remedy="write it with trtkp advise --json"
            ) from None


def advise(
    model: str | PathLike[str],
    options: AdviceOptions | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Advice:
    """Time what pruning could gain in every layer of a model on this machine, before anything is trained.

    Args:
        model: model file, in any format that `trtkp.load_model` reads.
        options: layers, shapes, seconds and so on; None for the defaults.
        progress: called with a phase, the layers done and the layers in all.

    Returns:
        For every layer its dense time in ms and its share of the net's, the speed-up of every granularity and density,
        and the finest granularity that gains nearly as much as the best.

    Raises:
        InputError: an option or the model cannot be used.

    Example:
        >>> import trtkp
        >>> advice = trtkp.advise("net.onnx", trtkp.AdviceOptions(seconds=1, batch=8, timing_cache=False))
        >>> advice.batch, list(advice.layers)
        (8, ['w1', 'w2'])
        >>> all(layer.dense_ms is None or layer.dense_ms > 0 for layer in advice.layers.values())
        True
    """
    options = options or AdviceOptions()
    if progress is not None:
        progress("Loading the model", 0, 1)
    source = load_model(
        Path(model), arch=options.arch, input_shape=list(options.input_shape) or None, trust_pickle=options.trust_pickle
    )
    profile = profile_from_options(source.inputs, optimum=options.opt, input_shape=options.input_shape)
    table = conv_layers(source.graph(), smallest_samples(source.inputs, profile))
    chosen, left_out = select_layers(VSKP(), table.layers, options.include, options.skip)
    batch = options.batch or (profile[table.batch_input].opt[0] if table.batch_input is not None else 1)
    cache = TimingCache() if options.timing_cache else TimingCache.in_memory()
    layers = _weighed(chosen, batch, options, cache, progress)
    return Advice(
        model=str(model),
        machine=cpu_name(),
        threads=options.threads or usable_cores(),
        batch=batch,
        densities=list(DENSITIES),
        layers=_with_shares(layers),
        left_out=table.left_out | left_out,
        warnings=[*source.warnings, *cache.problems],
    )


def _weighed(
    chosen: Sequence[ConvLayer],
    batch: int,
    options: AdviceOptions,
    cache: TimingCache,
    progress: Callable[[str, int, int], None] | None,
) -> dict[str, LayerAdvice]:
    """The advice for each layer. Layers of one geometry are timed once; those with the most MACs come first."""
    alike: dict[ConvLayer, list[str]] = {}
    for layer in {layer.name: layer for layer in chosen}.values():
        geometry = replace(layer, name="", node="", bias=True, stem=False)
        alike.setdefault(geometry, []).append(layer.name)
    order = sorted(alike, key=lambda layer: -layer.macs * len(alike[layer]))
    advice: dict[str, LayerAdvice] = {}
    start = time.perf_counter()
    for done, layer in enumerate(order):
        if progress is not None:
            progress("Timing layers", done, len(order))
        left = options.seconds - (time.perf_counter() - start)
        blank = LayerAdvice(shape=layer.weight_shape, output_size=layer.output_size)
        if layer.groups > 1:
            found = blank.model_copy(update={"reason": "grouped convolution: no lowering but dense applies"})
        elif left <= 0:
            found = blank.model_copy(update={"reason": "not timed: give a larger --seconds"})
        else:
            time_limit_s = min(_MOST_S, max(_LEAST_S, left / (len(order) - done)))
            found = _weigh(layer, blank, batch, options.threads, cache, time_limit_s)
        advice |= dict.fromkeys(alike[layer], found)
    if progress is not None and order:
        progress("Timing layers", len(order), len(order))
    return {name: advice[name] for name in dict.fromkeys(layer.name for layer in chosen)}


def _with_shares(layers: dict[str, LayerAdvice]) -> dict[str, LayerAdvice]:
    total = sum(layer.dense_ms or 0 for layer in layers.values())
    return {
        name: layer.model_copy(update={"share": round(layer.dense_ms / total, 4)}) if layer.dense_ms else layer
        for name, layer in layers.items()
    }


def _weigh(
    layer: ConvLayer, blank: LayerAdvice, batch: int, threads: int | None, cache: TimingCache, time_limit_s: float
) -> LayerAdvice:
    """Time each granularity and density, in the lowering that is predicted to be fastest, against dense, in turn."""
    count = batch * layer.repeats
    shapes: dict[str, Shape] = {
        "x": (count, layer.channels, *layer.input_size),
        "y": (count, layer.filters, *layer.output_size),
    }
    models: dict[str, ir.Model] = {}
    candidates: list[tuple[Option, str | None]] = []
    for granularity, wanted, mask in _masks(layer):
        node = _node(layer, mask, shapes)
        lowering = _predicted_fastest(node, shapes)
        option = Option(
            granularity=granularity, density=round(float(mask.mean()), 4), wanted=wanted, speed_up=1.0, lowering="dense"
        )
        if not models:
            models["dense"] = single_layer(node, "dense", shapes)
        label = None
        if lowering != "dense":
            label = f"{granularity} {wanted} {lowering}"
            models[label] = single_layer(node, lowering, shapes)
            option = option.model_copy(update={"lowering": lowering})
        candidates.append((option, label))
    times = race_cached(models, shapes, threads, cache, time_limit_s)
    options = []
    for option, label in candidates:
        gain = times[label].gain_over(times["dense"]) if label is not None else 1.0
        pays = gain >= MEASURED_GAIN
        options.append(
            option.model_copy(
                update={"speed_up": round(gain, 3) if pays else 1.0, "lowering": option.lowering if pays else "dense"}
            )
        )
    best = _recommended(options)
    return blank.model_copy(
        update={
            "dense_ms": round(times["dense"].median_ms, 4),
            "options": options,
            "recommended": best,
            "reason": None if best is not None else f"no granularity gains {PAYS} at any density",
        }
    )


def _recommended(options: Sequence[Option]) -> Granularity | None:
    """The finest granularity whose mean speed-up (geometric, over the densities) is nearly that of the best."""
    mean: dict[Granularity, float] = {}
    for granularity in {option.granularity for option in options}:
        gains = [option.speed_up for option in options if option.granularity == granularity]
        if max(gains) >= PAYS:
            mean[granularity] = prod(gains) ** (1 / len(gains))
    enough = [granularity for granularity, gain in mean.items() if gain >= NEARLY * max(mean.values())]
    return min(enough, key=lambda granularity: (granularity.filter_group, granularity.kind), default=None)


def _masks(layer: ConvLayer) -> Iterator[tuple[Granularity, float, npt.NDArray[np.bool_]]]:
    """Synthetic masks, bool [F, C, R, S], of every granularity and density, coarse lists first."""
    rng = np.random.default_rng(0)
    filters, channels = layer.filters, layer.channels
    multiple = list_multiple(np.float32)
    for group in dict.fromkeys((filters, *(size for size in FILTER_GROUPS if size < filters))):
        granularity = Granularity(kind="kernel", filter_group=group)
        for density in DENSITIES:
            kept = max(1, round(density * channels / multiple)) * multiple
            if kept >= channels:
                kept = max(1, round(density * channels))
            lists = rng.random((-(-filters // group), channels)).argsort(axis=1) < kept
            mask = np.repeat(lists, group, axis=0)[:filters, :, None, None]
            yield granularity, density, np.broadcast_to(mask, layer.weight_shape)
    if layer.kernel == (3, 3):
        for density, (rows, columns) in _TAPS.items():
            mask = np.zeros(layer.weight_shape, bool)
            mask[:, :, 1 : 1 + rows, :columns] = True
            yield Granularity(kind="stripe", filter_group=filters), density, mask


def _node(layer: ConvLayer, mask: npt.NDArray[np.bool_], shapes: dict[str, Shape]) -> ir.Node:
    """The layer as a packed node, with random weights and the given mask."""
    x = ir.val("x", ir.DataType.FLOAT, shapes["x"])
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 18}, name="layer")
    weight = np.random.default_rng(0).standard_normal(layer.weight_shape, np.float32) * mask
    values = [
        x,
        add_initializer(graph, "weight", weight / np.sqrt(np.float32(layer.channels * layer.taps))),
        add_initializer(graph, "bias", np.zeros(layer.filters, np.float32)),
    ]
    conv = ir.node(
        "Conv", values, {"strides": layer.strides, "pads": layer.pads, "dilations": layer.dilations}, name="layer"
    )
    y = conv.outputs[0]
    y.name, y.dtype, y.shape = "y", ir.DataType.FLOAT, ir.Shape(shapes["y"])
    graph.append(conv)
    graph.outputs.append(y)
    model = ir.Model(graph, ir_version=10)
    pack_convolutions(model, {"weight": from_mask(mask)}, {})
    (node,) = packed_nodes(model)
    return node


def _predicted_fastest(node: ir.Node, shapes: dict[str, Shape]) -> str:
    """The lowering with the smallest predicted time; dense only if no other lowering applies."""
    _, packed = read_packed(node)
    times: dict[str, Any] = {
        name: predicted_time(lowering.work(packed), packed.weight_shape, shapes["x"], shapes["y"], 4, CPU)
        for name, lowering in LOWERINGS.items()
        if lowering.applies(packed) is None
    }
    return min(times, key=lambda name: (name == "dense", times[name]))

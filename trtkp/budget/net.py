"""The net under search: it runs the steps of a build to get masks, times, errors and scores at given levels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from trtkp.budget.choices import DENSE, Level
from trtkp.calib.sensitivity import Scorer
from trtkp.data.labelled import LabelledData
from trtkp.engine import cpu_backend
from trtkp.errors import InputError
from trtkp.graph.passes.batch_norm import fold_batch_norm
from trtkp.graph.passes.batch_statistics import use_batch_statistics
from trtkp.graph.passes.pack import apply_masks
from trtkp.index.conv_layer import ConvLayer
from trtkp.machine.timing import Timing
from trtkp.pipeline.job import Job
from trtkp.pipeline.options import BuildOptions
from trtkp.pipeline.planning import Planned, plan
from trtkp.pipeline.prepare import load, prune, rewrite, survey
from trtkp.plan.cache import machine
from trtkp.plan.planner import NET_TIME_LIMIT_S
from trtkp.plan.race import race
from trtkp.pruning.methods.allocation import Allocated, Allocation, LayerSettings
from trtkp.pruning.methods.registry import make_method
from trtkp.pruning.one_shot import select_layers
from trtkp.shapes import Profile, Shape, ShapeRange

__all__ = ["Net", "Quality"]

#: Batch size for batch-normalisation statistics, if the profile allows it: small batches give noisy statistics.
_BATCH = 64

Progress = Callable[[str, int, int], None]
Levels = Mapping[str, Level]


@dataclass(frozen=True)
class Quality:
    """The quality of a pruned net on the samples, without training.

    Attributes:
        error: relative Frobenius norm of the difference between its outputs and the dense net's.
        score: accuracy, 0 to 1; without labels, the share of decisions that agree with the dense net's; None if the
            net is not a classifier.
        loss: what the search minimises: mean cross-entropy with labels, else ``error``.
    """

    error: float
    score: float | None
    loss: float


@dataclass
class Net:
    """A model, and a method with the settings that all layers share.

    Args:
        path: the model file.
        method: name of the method.
        settings: settings of the method, the same in all layers.
        options: shapes, threads and so on, as for a build.
        data: samples to score the net on.
        samples: how many of them to use.
        progress: called with a phase, the steps done and the steps in all.

    Raises:
        InputError: bad options, model or data, or the method finds no layer to prune.
    """

    path: Path
    method: str
    settings: dict[str, Any]
    options: BuildOptions
    data: LabelledData | str | PathLike[str] | None
    samples: int
    progress: Progress | None = None

    layers: dict[str, list[ConvLayer]] = field(init=False)
    """Parameter name to the convolutions that use it, in graph order, for the layers that are pruned."""

    def __post_init__(self) -> None:
        base = make_method(self.method, **self.settings, ratio=0.5, allocation="uniform")
        self._job = Job(self.path, Path(), cpu_backend(), self.options, self.progress)
        self._loaded = load(self._job, self.data)
        if self._loaded.samples is None:
            raise InputError("a search scores the net on real inputs", remedy="give --data")
        self._surveyed = survey(self._job, self._loaded)
        self._masks: dict[tuple[str, Level], npt.NDArray[np.bool_]] = {}
        table = self._surveyed.table.layers
        chosen = {layer.name for layer in select_layers(base, table, self.options.include, self.options.skip)[0]}
        self.layers = {}
        for layer in table:
            if layer.name in chosen:
                self.layers.setdefault(layer.name, []).append(layer)
        if not self.layers:
            raise InputError(f"method {self.method} finds no layer to prune", file=self.path)
        some = self._loaded.samples.spread(self.samples)
        self._labels = some.labels
        graph = self._loaded.graph()
        use_batch_statistics(graph)
        self._scorer = Scorer(graph, some, self._large_batches(), self.options.threads, fuse_qdq=False)
        self.measure = self._scorer.measure
        self.key = f"{machine()} {self._loaded.source.sha256} {some.digest} {self._loaded.profile}"

    def _large_batches(self) -> Profile:
        """The profile with a larger usual batch, for better batch statistics."""
        ((name, limits),) = self._loaded.profile.items()
        size = min(limits.max[0], max(limits.opt[0], _BATCH))
        return {name: ShapeRange(limits.min, (size, *limits.opt[1:]), limits.max)}

    def allocation(self, levels: Levels) -> Allocation:
        """The levels as an allocation; dense layers are left out."""
        own = {
            name: LayerSettings(
                ratio=level.ratio,
                filter_group=level.filter_group if level.filter_group > 1 else None,
                channel_block=level.channel_block if level.channel_block > 1 else None,
            )
            for name, level in levels.items()
            if level != DENSE
        }
        return Allocation(method=self.method, settings=self.settings, layers=own)

    def masks(self, levels: Levels) -> dict[str, npt.NDArray[np.bool_]]:
        """The masks of the layers that are not dense, bool [F, C, R, S], by parameter name."""
        return {name: self._mask(name, level) for name, level in levels.items() if level != DENSE}

    def macs(self, name: str, level: Level) -> int:
        """Multiply-accumulates per sample of all convolutions that use a weight."""
        kept = int(self._mask(name, level).sum()) if level != DENSE else self.layers[name][0].weight_count
        return sum(kept * layer.macs_per_weight for layer in self.layers[name])

    def _mask(self, name: str, level: Level) -> npt.NDArray[np.bool_]:
        """The mask of one layer at one level. It does not depend on other layers, so it is computed once."""
        if (name, level) not in self._masks:
            method = Allocated(self.allocation({name: level}), make_method)
            self._masks[name, level] = method.masks(self.layers[name][:1], self._surveyed.weights)[name]
        return self._masks[name, level]

    @cached_property
    def other_macs(self) -> int:
        """Multiply-accumulates per sample of everything that is not in ``layers``."""
        return self._surveyed.table.macs - sum(layer.macs for nodes in self.layers.values() for layer in nodes)

    def times(self, levels: Levels) -> dict[str, tuple[float, float]]:
        """For each layer that is not dense: milliseconds of the dense layer and of its fastest lowering."""
        found: dict[str, tuple[float, float]] = {}
        for layer in self._planned(levels).plan.layers:  # the times of convolutions that share a weight add up
            before, best = found.get(layer.name, (0.0, 0.0))
            slow, fast = (layer.candidates[name] for name in ("dense", layer.choice))
            found[layer.name] = (before + slow, best + fast)
        return found

    def race(self, levels: Levels) -> tuple[Timing, Timing]:
        """Times of the whole net, dense and at these levels, measured in turn."""
        nets = {"dense": self._dense, "found": self._planned(levels).engine}
        times = race(nets, self._shapes, self.options.threads, NET_TIME_LIMIT_S)
        return times["dense"], times["found"]

    def dense_time(self) -> float:
        """Median time of the whole dense net, in milliseconds."""
        return race({"dense": self._dense}, self._shapes, self.options.threads, NET_TIME_LIMIT_S)["dense"].median_ms

    @cached_property
    def _dense(self) -> ir.Model:
        graph = self._loaded.graph()
        fold_batch_norm(graph)
        return graph

    @property
    def _shapes(self) -> dict[str, Shape]:
        return {name: limits.opt for name, limits in self._loaded.profile.items()}

    def _planned(self, levels: Levels) -> Planned:
        """The steps of a build up to ``engine.onnx``."""
        job, loaded, table = self._job, self._loaded, self._surveyed.table
        method = Allocated(self.allocation(levels), make_method)
        pruned = prune(job, self._surveyed, method)
        rewritten = rewrite(job, loaded, table, pruned)
        return plan(job, loaded, table, pruned, rewritten.dense, method)

    def quality(self, levels: Levels) -> Quality:
        """Score the net at these levels, without training.

        Batch normalisation uses the statistics of the samples. The stored ones belong to the dense weights, and the
        first steps of a fine-tune replace them.
        """
        graph = self._loaded.graph()
        apply_masks(graph, self.masks(levels))
        use_batch_statistics(graph)
        outputs = self._scorer.outputs(graph)
        error, score = self._scorer.error(outputs), self._scorer.score(outputs)
        labelled = self.measure == "accuracy" and self._labels is not None
        logits = next(iter(outputs.values()))
        return Quality(error, score, _cross_entropy(logits, self._labels) if labelled else error)


def _cross_entropy(logits: npt.NDArray[Any], labels: npt.NDArray[np.int64] | None) -> float:
    """Mean cross-entropy, ``log sum exp(z) - z_label``, of logits z [N, classes]."""
    assert labels is not None
    z = logits.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), labels]))

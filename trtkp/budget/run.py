"""``trtkp search``: measure latency and sensitivity of each layer, choose levels, and time the net that was found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from os import PathLike
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Literal

from trtkp.budget.choices import DENSE, Choice, Level, cheapest, pick, total
from trtkp.budget.net import Net, Quality
from trtkp.budget.options import SearchOptions
from trtkp.budget.state import State
from trtkp.budget.study import search
from trtkp.errors import InputError, JobError
from trtkp.pipeline.options import BuildOptions
from trtkp.pruning.methods.allocation import Allocation

if TYPE_CHECKING:
    from trtkp.data.labelled import LabelledData

__all__ = ["Measured", "Point", "SearchResult", "run_search"]

Progress = Callable[[str, int, int], None]
Unit = Literal["latency_ms", "macs"]

#: Shares of the dense cost at which the trade-off is drawn.
_FRONT = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
#: Layers take a different time in the net than alone. If the net misses a latency target, the budget is cut by the
#: excess and the search repeated, this often at most.
_CORRECTIONS = 3
#: A measured net may exceed its latency target by this factor, which is the noise of a median.
_SLACK = 1.01
#: Steps of the bisection over the budget for ``max_drop``: six find the budget to 1/64 of its range.
_BISECTIONS = 6


@dataclass(frozen=True)
class Point:
    """A pruned net on the trade-off, with its estimated latency and its quality without training.

    Attributes:
        name: ``searched`` for the search at one budget, ``found`` for the result, else the level of all layers.
        latency: latency as a share of the dense net's, from the sum of the layers' times.
        macs: MACs as a share of the dense net's.
        loss: see `Quality`.
        score: see `Quality`.
    """

    name: str
    latency: float
    macs: float
    loss: float
    score: float | None


@dataclass(frozen=True)
class Measured:
    """Median latency of the dense net and of the net that was found, timed in turn, in milliseconds."""

    dense_ms: float
    found_ms: float

    @property
    def share(self) -> float:
        """Latency of the net that was found, as a share of the dense net's."""
        return self.found_ms / self.dense_ms


@dataclass(frozen=True)
class SearchResult:
    """The result of a search, and what was tried on the way.

    Attributes:
        allocation: the allocation that was found, for ``--allocation``.
        found: the net with this allocation.
        dense: quality of the dense net.
        measure: what the score is, accuracy or agreement; None if the net is not a classifier.
        measured: latency of the dense net and of the net that was found.
        choices: parameter name of a layer to all its choices.
        chosen: parameter name of a layer to the choice that was made.
        points: the trade-off: the search at several budgets, and every level applied to all layers.
        reached: whether the measured latency keeps to the target; true for other targets.
        options: the options of the search.
    """

    allocation: Allocation
    found: Point
    dense: Quality
    measure: str | None
    measured: Measured
    choices: dict[str, list[Choice]]
    chosen: dict[str, Choice]
    points: list[Point]
    reached: bool
    options: SearchOptions


def run_search(
    model: str | PathLike[str],
    data: LabelledData | str | PathLike[str] | None,
    search_options: SearchOptions,
    *,
    state: Path,
    options: BuildOptions | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Find a ratio and a granularity for every layer.

    Args:
        model: model file in any format that `trtkp.build` reads.
        data: real inputs, as for calibration, with labels if there are any.
        search_options: method, levels, target and so on.
        state: directory that the search will write. Measurements are kept beside it until the search ends.
        options: shapes, threads and so on, as for a build. The backend is always onnxruntime.
        progress: called with a phase, the steps done and the steps in all.

    Raises:
        InputError: bad options, model or data, or no choice reaches the target.
        JobError: no choice keeps the drop within ``max_drop``.
    """
    options = options or BuildOptions()
    net = Net(
        Path(model), search_options.method, dict(search_options.settings), options, data, search_options.samples,
        progress,
    )  # fmt: skip
    if search_options.max_drop is not None and net.measure is None:
        raise InputError("--max-drop needs a classifier: the model's first output is not [N, classes]")
    settings = {key: value for key, value in asdict(search_options).items() if key != "trials"}
    key = sha256(f"{net.key} {settings} {options}".encode()).hexdigest()
    with State(state, key) as kept:
        return _Search(net, search_options, kept, progress).result()


class _Search:
    """One search. The constructor measures the tables of latency and error; `result` searches."""

    def __init__(self, net: Net, options: SearchOptions, state: State, progress: Progress | None) -> None:
        self.net, self.options, self.state, self.progress = net, options, state, progress
        self.qualities: dict[tuple[Level, ...], Quality] = {}
        self.dense = self._quality(dict.fromkeys(net.layers, DENSE))
        self.dense_ms = self._dense_ms()
        self.choices = self._tables()
        self.dense_macs = net.other_macs + sum(layer[0].macs for layer in self.choices.values())
        # the rest of the net takes the difference between its time and the sum of its layers. Timed alone, layers may
        # add up to more than the net; their times are then scaled down and the rest is zero
        layers_ms = sum(layer[0].latency_ms for layer in self.choices.values())
        if not layers_ms:
            raise InputError("no level removes anything from any layer", file=net.path, remedy="give larger --ratios")
        self.scale = min(1.0, self.dense_ms / layers_ms)
        self.rest = {"latency_ms": max(0.0, self.dense_ms / self.scale - layers_ms), "macs": float(net.other_macs)}

    def result(self) -> SearchResult:
        """Search for the target, time the net that was found, and correct the budget if it misses the target."""
        options = self.options
        points = self._uniform()
        if options.max_drop is not None:
            chosen, measured = self._within_drop(options.max_drop)
        elif options.target_flops is not None:
            chosen = self._at(options.target_flops, "macs", options.trials)
            measured = self._measured(chosen)
        else:
            assert options.target_latency is not None
            chosen, measured = self._at_latency(options.target_latency)
        reached = options.target_latency is None or measured.share <= options.target_latency * _SLACK
        levels = {name: choice.level for name, choice in chosen.items()}
        return SearchResult(
            allocation=self.net.allocation(levels),
            found=self._point("found", chosen),
            dense=self.dense,
            measure=self.net.measure,
            measured=measured,
            choices=self.choices,
            chosen=chosen,
            points=[*points, *self._front()],
            reached=reached,
            options=options,
        )

    def _dense_ms(self) -> float:
        if "dense ms" not in self.state:
            self._report("Timing the dense net", 0, 1)
            self.state["dense ms"] = self.net.dense_time()
        return float(self.state["dense ms"])

    def _tables(self) -> dict[str, list[Choice]]:
        """Measure each layer at each level: its time, and the error of the net when it alone is pruned.

        All layers are pruned to one level and planned together, so the times of a level come from one run.
        """
        levels = self.options.levels()[1:]
        times: dict[Level, dict[str, list[float]]] = {}
        for done, level in enumerate(levels):
            self._report(f"Timing {level.label}", done, len(levels))
            name = f"times {level}"
            if name not in self.state:
                self.state[name] = self.net.times(dict.fromkeys(self.net.layers, level))
            times[level] = self.state[name]
        choices: dict[str, list[Choice]] = {}
        for done, layer in enumerate(self.net.layers):
            self._report(f"Pruning {layer} alone", done, len(self.net.layers))
            name = f"errors {layer}"
            if name not in self.state:
                self.state[name] = [self.net.quality({layer: level}).error ** 2 for level in levels]
            timed = {level: times[level][layer] for level in levels if layer in times[level]}
            dense_ms = median(dense for dense, _ in timed.values()) if timed else 0.0
            found = [Choice(DENSE, dense_ms, self.net.macs(layer, DENSE), 0.0)]
            for level, error in zip(levels, self.state[name], strict=True):
                if level in timed:  # a level that removes nothing from this layer is no choice of its own
                    found.append(Choice(level, timed[level][1], self.net.macs(layer, level), error))
            choices[layer] = found
        return choices

    def _at(self, share: float, by: Unit, trials: int) -> dict[str, Choice]:
        """The best choice within a share of the dense net's cost.

        Raises:
            InputError: even the cheapest choice costs more.
        """
        budget = share * (self.dense_ms / self.scale if by == "latency_ms" else self.dense_macs) - self.rest[by]

        def report(done: int, of: int, best: float) -> None:
            self._report(f"Searching at {share:.0%}, loss {best:.3f}", done, of)

        found = search(
            self.choices, budget, by=by, loss=lambda chosen: self._quality(_levels(chosen)).loss, trials=trials,
            seed=self.options.seed, storage=self.state.journal, name=f"{by} {share:.9f}", progress=report,
        )  # fmt: skip
        if found is None:
            least = self._share(cheapest(self.choices, by=by), by)
            raise InputError(
                f"the cheapest choice takes {least:.0%} of the dense net, the target is {share:.0%}",
                file=self.net.path, remedy="give larger --ratios, or --filter-groups that are faster on this machine",
            )  # fmt: skip
        return found.chosen

    def _at_latency(self, target: float) -> tuple[dict[str, Choice], Measured]:
        """The best choice whose measured latency keeps to the target, or else the fastest that was tried."""
        share, tried = target, []
        for _ in range(_CORRECTIONS):
            chosen = self._at(share, "latency_ms", self.options.trials)
            measured = self._measured(chosen)
            tried.append((chosen, measured))
            if measured.share <= target * _SLACK:
                return chosen, measured
            share *= target / measured.share
            if share * self.dense_ms / self.scale < self.rest["latency_ms"] + cheapest(self.choices, by="latency_ms"):
                break
        return min(tried, key=lambda one: one[1].share)

    def _within_drop(self, points: float) -> tuple[dict[str, Choice], Measured]:
        """The fastest choice whose score without training drops by at most ``points``, by bisection over the budget.

        Raises:
            JobError: every choice drops by more.
        """
        low, high = self._share(cheapest(self.choices, by="latency_ms"), "latency_ms"), 1.0
        best = None
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            chosen = self._at(middle, "latency_ms", max(1, self.options.trials // _BISECTIONS))
            score, before = self._quality(_levels(chosen)).score, self.dense.score
            assert score is not None
            assert before is not None
            if 100 * (before - score) <= points + 1e-9:
                best, high = chosen, middle
            else:
                low = middle
        if best is None:
            raise JobError(
                f"no choice keeps the one-shot drop within {points:g} points", file=self.net.path,
                remedy="give a larger --max-drop, and fine-tune the net that the search finds",
            )  # fmt: skip
        return best, self._measured(best)

    def _measured(self, chosen: Mapping[str, Choice]) -> Measured:
        self._report("Timing the net found", 0, 1)
        dense, found = self.net.race(_levels(chosen))
        return Measured(dense.median_ms, found.median_ms)

    def _uniform(self) -> list[Point]:
        """A point for every level, applied to all layers."""
        points = []
        levels = self.options.levels()
        for done, level in enumerate(levels):
            self._report(f"Scoring {level.label} in every layer", done, len(levels))
            alike = {
                name: next((choice for choice in layer if choice.level == level), layer[0])
                for name, layer in self.choices.items()
            }
            points.append(self._point(level.label, alike))
        return points

    def _front(self) -> list[Point]:
        """Points at round budgets, by the plain sum of errors without the outer search."""
        points = []
        by: Unit = "macs" if self.options.target_flops is not None else "latency_ms"
        whole = self.dense_macs if by == "macs" else self.dense_ms / self.scale
        for done, share in enumerate(_FRONT):
            self._report(f"Trade-off at {share:.0%}", done, len(_FRONT))
            chosen = pick(self.choices, share * whole - self.rest[by], by=by)
            if chosen is not None:
                points.append(self._point("searched", chosen))
        return points

    def _point(self, name: str, chosen: Mapping[str, Choice]) -> Point:
        quality = self._quality(_levels(chosen))
        latency, macs = (self._share(total(chosen, by=by), by) for by in ("latency_ms", "macs"))
        return Point(name, latency, macs, quality.loss, quality.score)

    def _share(self, layers: float, by: str) -> float:
        """The cost of the whole net as a share of the dense net's, from the cost of its layers."""
        whole = self.dense_ms / self.scale if by == "latency_ms" else self.dense_macs
        return (layers + self.rest[by]) / whole

    def _quality(self, levels: Mapping[str, Level]) -> Quality:
        key = tuple(levels[name] for name in self.net.layers)
        if key not in self.qualities:
            self.qualities[key] = self.net.quality(levels)
        return self.qualities[key]

    def _report(self, phase: str, done: int, of: int) -> None:
        if self.progress is not None:
            self.progress(phase, done, of)


def _levels(chosen: Mapping[str, Choice]) -> dict[str, Level]:
    return {name: choice.level for name, choice in chosen.items()}

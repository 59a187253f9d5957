"""Compare the outputs of several engines on the same inputs with those of the first engine, batch by batch.

Only sums are kept between batches, so that the data set may be larger than memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from trtkp.comparison.result import Difference
from trtkp.data.labelled import decide
from trtkp.engine.base import Runner
from trtkp.errors import InputError

__all__ = ["Batch", "Scores", "score"]

Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True)
class Batch:
    """The inputs of one run.

    Attributes:
        feeds: an array for every input, by name.
        count: number of samples that count; the rest is padding.
        labels: class labels [count]; None without labels.
    """

    feeds: Mapping[str, Array]
    count: int
    labels: npt.NDArray[np.int64] | None = None

    def trimmed(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs without the rows of the padding."""
        if all(self.count >= len(feed) for feed in self.feeds.values() if feed.ndim):
            return dict(outputs)
        return {name: value[: self.count] if value.ndim else value for name, value in outputs.items()}


@dataclass(frozen=True)
class Scores:
    """The outputs of one engine compared with the baseline's, and its accuracy where there are labels."""

    difference: Difference
    accuracy: float | None


def score(runners: Mapping[str, Runner], batches: Iterable[Batch]) -> dict[str, Scores]:
    """Run every batch on every engine, and compare the outputs with the baseline's.

    Args:
        runners: the opened engines by name; the first is the baseline.
        batches: the inputs.

    Returns:
        The scores of every engine, by name.

    Raises:
        InputError: outputs have other names or shapes than the baseline's, or the labels do not fit the outputs.
    """
    sums = {name: _Sums() for name in runners}
    for batch in batches:
        baseline: dict[str, Array] | None = None
        for name, runner in runners.items():
            outputs = batch.trimmed(runner.run(batch.feeds))
            baseline = outputs if baseline is None else baseline
            _check_outputs(name, outputs, baseline)
            sums[name].add(outputs, baseline, batch)
    return {name: total.scores() for name, total in sums.items()}


class _Sums:
    def __init__(self) -> None:
        self.apart: dict[str, float] = defaultdict(float)  # sum of squares, by output
        self.norm: dict[str, float] = defaultdict(float)
        self.max_abs = 0.0
        self.samples = self.agreeing = self.right = 0
        self.classes = self.labelled = True

    def add(self, outputs: Mapping[str, Array], baseline: Mapping[str, Array], batch: Batch) -> None:
        for name, reference in baseline.items():
            # float64: in float16 or float32 the sum of squares would overflow or lose its last digits
            y, b = outputs[name].astype(np.float64), reference.astype(np.float64)
            with np.errstate(invalid="ignore"):  # infinities on both sides give NaN: the difference is unknown
                difference = y - b
            self.max_abs = float(np.maximum(self.max_abs, np.abs(difference).max(initial=0.0)))  # NaN stays NaN
            self.apart[name] += float(np.square(difference).sum())
            self.norm[name] += float(np.square(b).sum())
        first, reference = next(iter(outputs.values())), next(iter(baseline.values()))
        self.samples += batch.count
        self.classes &= first.ndim == 2
        if self.classes:
            self.agreeing += int(np.count_nonzero(first.argmax(axis=1) == reference.argmax(axis=1)))
        self.labelled &= batch.labels is not None
        if batch.labels is not None:
            self.right += int(np.count_nonzero(decide(first, batch.labels) == batch.labels))

    def scores(self) -> Scores:
        relative = [_relative(self.apart[name], norm) for name, norm in self.norm.items()]
        agreement = self.agreeing / self.samples if self.classes and self.samples else None
        worst = float(np.max(relative)) if relative else 0.0  # NaN stays NaN
        difference = Difference(self.max_abs, worst, agreement, self.samples)
        return Scores(difference, self.right / self.samples if self.labelled and self.samples else None)


def _relative(apart: float, norm: float) -> float:
    """``||y - b|| / ||b||`` from the sums of squares."""
    if norm:
        return float(np.sqrt(apart / norm))
    return 0.0 if apart == 0 else float("inf")


def _check_outputs(name: str, outputs: Mapping[str, Array], baseline: Mapping[str, Array]) -> None:
    if list(outputs) != list(baseline):
        raise InputError(
            f"has outputs {_names(list(outputs))}, but the baseline has {_names(list(baseline))}",
            file=name,
            remedy="compare engines of one model",
        )
    for key, value in outputs.items():
        if value.shape != baseline[key].shape:
            raise InputError(
                f"output {key} has shape {list(value.shape)}, but the baseline's has {list(baseline[key].shape)}",
                file=name,
                remedy="compare engines of one model",
            )


def _names(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"

"""Measure what quantisation costs, per layer and for the whole net, and choose which layers stay in floating point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from trtkp.data.samples import Samples
from trtkp.errors import JobError
from trtkp.shapes import Profile

__all__ = ["Scorer", "choose_unquantised", "relative_error"]

Outputs = dict[str, npt.NDArray[Any]]


def relative_error(found: Outputs, expected: Outputs) -> float:
    """Relative Frobenius error over all outputs together: ``||found - expected|| / ||expected||``.

    Example:
        >>> relative_error({"y": np.array([3.0, 4.0])}, {"y": np.array([3.0, 0.0])})
        1.3333333333333333
    """
    difference = sum(float(np.square(np.subtract(found[name], want, dtype=np.float64)).sum()) for name, want in
                     expected.items())  # fmt: skip
    norm = sum(float(np.square(want, dtype=np.float64).sum()) for want in expected.values())
    return float(np.sqrt(difference / norm)) if norm else float(np.sqrt(difference))


class Scorer:
    """Compares quantised graphs with the floating-point net on samples.

    Args:
        model: the floating-point net, with one input.
        samples: samples with or without labels. Without them, the floating-point net's own decisions are the reference.
        profile: shape limits of the input.
        threads: CPU threads of ONNX Runtime.
        fuse_qdq: as for `trtkp.engine.onnxruntime.OrtRunner`; true for the Q/DQ variant ``onnxruntime``.

    Raises:
        JobError: the net computes NaN or infinity on a sample.
    """

    def __init__(
        self, model: ir.Model, samples: Samples, profile: Profile, threads: int | None, *, fuse_qdq: bool
    ) -> None:
        self._samples, self._threads, self._fuse_qdq = samples, threads, fuse_qdq
        (self._name, self._limits) = next(iter(profile.items()))
        self.expected = self.outputs(model)
        for name, values in self.expected.items():
            if not np.isfinite(values).all():
                raise JobError("is NaN or infinite on this data", layer=name, remedy="check model and data")
        logits = self._logits(self.expected)
        self._labels: npt.NDArray[np.int64] | None = None
        if logits is not None:
            given = samples.labels
            known = given is not None and 0 <= given.min() <= given.max() < logits.shape[1]
            self.measure = "accuracy" if known else "agreement"
            self._labels = given if known else logits.argmax(axis=1)

    #: ``accuracy`` with usable labels, ``agreement`` without; None where the net is not a classifier.
    measure: str | None = None

    def outputs(self, model: ir.Model) -> Outputs:
        """Run a graph on all samples in batches, and return its outputs by name."""
        from trtkp.engine.onnxruntime import OrtRunner

        parts: dict[str, list[npt.NDArray[Any]]] = {}
        with OrtRunner(model, threads=self._threads, fuse_qdq=self._fuse_qdq) as runner:
            dtype = runner.inputs[0].dtype
            for batch, count in self._samples.batches(self._limits):
                for name, values in runner.run({self._name: batch.astype(dtype)}).items():
                    parts.setdefault(name, []).append(values[:count])
        return {name: np.concatenate(values) for name, values in parts.items()}

    def score(self, outputs: Outputs) -> float | None:
        """Share of samples in [0, 1] classified as by labels or the floating-point net; None if not a classifier."""
        logits = self._logits(outputs)
        if logits is None or self._labels is None:
            return None
        return float(np.mean(logits.argmax(axis=1) == self._labels))

    def error(self, outputs: Outputs) -> float:
        """Relative error of outputs against those of the floating-point net; see `relative_error`."""
        return relative_error(outputs, self.expected)

    def _logits(self, outputs: Outputs) -> npt.NDArray[Any] | None:
        first = next(iter(outputs.values()))
        return first if first.ndim == 2 and first.shape[1] > 1 and len(first) == len(self._samples.inputs) else None


def choose_unquantised(
    layers: Sequence[str], floating: float, max_drop: float, score: Callable[[Sequence[str]], float]
) -> list[str]:
    """Return the layers to leave in floating point, as few as a bisection finds, so that the score stays in its limit.

    The bisection assumes that leaving one more layer in floating point does not lower the score. The returned choice
    was scored itself, unless it is all layers, which is the floating-point net.

    Args:
        layers: all layers, the most sensitive first.
        floating: score of the floating-point net, in [0, 1].
        max_drop: percentage points that may be lost.
        score: scores the net with the given layers quantised.

    Example:
        >>> quality = {3: 0.80, 2: 0.90, 1: 0.95, 0: 0.95}
        >>> choose_unquantised(["a", "b", "c"], 0.95, 1.0, lambda quantised: quality[len(quantised)])
        ['a', 'b']
    """
    holds = [False] * len(layers) + [True]
    low, high = 0, len(layers)
    middle = 0  # begin with all layers quantised, which suffices for most nets
    while low < high:
        holds[middle] = 100 * (floating - score(layers[middle:])) <= max_drop + 1e-9
        if holds[middle]:
            high = middle
        else:
            low = middle + 1
        middle = (low + high) // 2
    return list(layers[:high])

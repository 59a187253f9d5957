"""What 8 bits cost: the net's outputs and decisions, layer by layer and as a whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from trtkp.data.samples import Samples
from trtkp.errors import JobError
from trtkp.shapes import Profile

__all__ = ["Scorer", "relative_error", "send_back"]

Outputs = dict[str, npt.NDArray[Any]]


def relative_error(found: Outputs, expected: Outputs) -> float:
    """Frobenius norm of the difference over that of the expected outputs, all outputs together."""
    difference = sum(float(np.square(np.subtract(found[name], want, dtype=np.float64)).sum()) for name, want in
                     expected.items())  # fmt: skip
    norm = sum(float(np.square(want, dtype=np.float64).sum()) for want in expected.values())
    return float(np.sqrt(difference / norm)) if norm else float(np.sqrt(difference))


class Scorer:
    """Holds graphs against the net in floating point on samples.

    Args:
        model: the net in floating point, one input.
        samples: with labels, or without: then the net's own decisions are what is to be kept.
        profile: of the input.
        threads: of ONNX Runtime.
        fuse_qdq: see `trtkp.engine.onnxruntime.OrtRunner`: true for graphs made for it.

    Raises:
        JobError: the net gives NaN or infinity on a sample.
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

    #: ``accuracy``, ``agreement``, or None where the net decides nothing.
    measure: str | None = None

    def outputs(self, model: ir.Model) -> Outputs:
        """Outputs on all samples, batch after batch."""
        from trtkp.engine.onnxruntime import OrtRunner

        parts: dict[str, list[npt.NDArray[Any]]] = {}
        with OrtRunner(model, threads=self._threads, fuse_qdq=self._fuse_qdq) as runner:
            dtype = runner.inputs[0].dtype
            for batch, count in self._samples.batches(self._limits):
                for name, values in runner.run({self._name: batch.astype(dtype)}).items():
                    parts.setdefault(name, []).append(values[:count])
        return {name: np.concatenate(values) for name, values in parts.items()}

    def score(self, outputs: Outputs) -> float | None:
        """Share of samples decided as the labels say, or as the net in floating point did; None without decisions."""
        logits = self._logits(outputs)
        if logits is None or self._labels is None:
            return None
        return float(np.mean(logits.argmax(axis=1) == self._labels))

    def error(self, outputs: Outputs) -> float:
        """See `relative_error`."""
        return relative_error(outputs, self.expected)

    def _logits(self, outputs: Outputs) -> npt.NDArray[Any] | None:
        first = next(iter(outputs.values()))
        return first if first.ndim == 2 and first.shape[1] > 1 and len(first) == len(self._samples.inputs) else None


def send_back(
    layers: Sequence[str], floating: float, max_drop: float, score: Callable[[Sequence[str]], float]
) -> list[str]:
    """The fewest layers, first ones first, that must stay in floating point for the score to hold.

    Halves the interval between none and all: sending back one more layer is taken not to make things worse. The answer
    was scored itself; with every layer sent back the net is the one in floating point.

    Args:
        layers: most sensitive first.
        floating: score of the net in floating point.
        max_drop: points (hundredths) that may be lost.
        score: of the net with the given layers quantised.
    """
    holds = [False] * len(layers) + [True]
    low, high = 0, len(layers)
    middle = 0  # most nets need nothing
    while low < high:
        holds[middle] = 100 * (floating - score(layers[middle:])) <= max_drop + 1e-9
        if holds[middle]:
            high = middle
        else:
            low = middle + 1
        middle = (low + high) // 2
    return list(layers[:high])

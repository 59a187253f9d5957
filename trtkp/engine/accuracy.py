"""Classify labelled data with an opened engine, and measure its accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from trtkp.data.labelled import LabelledData, check_data, decide
from trtkp.shapes import Profile

if TYPE_CHECKING:
    from trtkp.engine.base import Runner

__all__ = ["accuracy", "decisions"]


def accuracy(runner: Runner, data: LabelledData, profile: Profile) -> float:
    """Top-1 accuracy in [0, 1] of a runner on labelled data; raises what `decisions` raises."""
    return float(np.mean(decisions(runner, data, profile) == data.labels))


def decisions(runner: Runner, data: LabelledData, profile: Profile) -> npt.NDArray[np.int64]:
    """Return the class [N] of every sample: the index of the largest logit in the runner's first output.

    Args:
        runner: an opened engine with one input.
        data: inputs [N, C, H, W] and labels [N].
        profile: shape limits of the input. Samples run in batches of the largest batch that it allows.

    Raises:
        InputError: the data does not fit the model's input (`check_data`), or its first output is not [N, classes].
    """
    check_data(data, profile)
    spec = runner.inputs[0]
    limits = profile[spec.name]
    inputs = data.inputs.astype(spec.dtype)
    classes, size = [], limits.max[0]  # the largest batch: the fewest runs
    for begin in range(0, len(inputs), size):
        batch = inputs[begin : begin + size]
        count = len(batch)
        if count < limits.min[0]:  # the last batch may be smaller than the profile allows: repeat its last sample
            batch = np.concatenate([batch, np.repeat(batch[-1:], limits.min[0] - count, axis=0)])
        logits = next(iter(runner.run({spec.name: batch}).values()))
        classes.append(decide(logits, data.labels)[:count])
    return np.concatenate(classes)

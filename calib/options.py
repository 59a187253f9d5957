"""The options of calibration. This module imports nothing heavy, because the command line reads it for its help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from trtkp.data.options import Mean, Std
from trtkp.settings import Setting, check

__all__ = ["DEFAULT_MAX_DROP", "METHODS", "CalibrationOptions"]

METHODS = ("min-max", "entropy", "percentile")

#: Percentage points of accuracy that quantisation may lose by default.
DEFAULT_MAX_DROP = 0.5

_GROUP = "Calibration"


@dataclass(frozen=True)
class CalibrationOptions:
    """How to calibrate for int8 or fp8.

    Raises:
        InputError: the calibrator or fallback is unknown, or a number is out of range.
    """

    calibrator: Annotated[
        str,
        Setting(
            "How the ranges of activations are found: min-max, entropy or percentile.",
            choices=METHODS,
            group=_GROUP,
        ),
    ] = "min-max"
    percentile: Annotated[
        float,
        Setting(
            "Percentile of absolute activation values that the percentile calibrator takes as the range.",
            gt=0,
            le=100,
            group=_GROUP,
        ),
    ] = 99.99
    samples: Annotated[
        int,
        Setting("Samples to measure ranges on, spread over the data; accuracy is measured on all.", ge=1, group=_GROUP),
    ] = 256
    max_drop: Annotated[
        float | None,
        Setting(
            "Points of accuracy that may be lost; layers go back to --fallback until the loss is within it.",
            ge=0,
            default=f"{DEFAULT_MAX_DROP:g} for a classifier",
            group=_GROUP,
        ),
    ] = None
    fallback: Annotated[
        Literal["fp32", "fp16"] | None,
        Setting(
            "Type of the layers that are not quantised, fp32 or fp16.",
            default="fp32 for onnxruntime, else fp16",
            group=_GROUP,
        ),
    ] = None
    mean: Mean = (0.0,)
    std: Std = (1.0,)

    def __post_init__(self) -> None:
        check(self)

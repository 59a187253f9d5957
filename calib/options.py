"""The options of calibration. This module imports nothing heavy, because the command line reads it for its help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trtkp.errors import InputError

__all__ = ["DEFAULT_MAX_DROP", "METHODS", "CalibrationOptions"]

METHODS = ("min-max", "entropy", "percentile")

#: Percentage points of accuracy that quantisation may lose by default.
DEFAULT_MAX_DROP = 0.5


@dataclass(frozen=True)
class CalibrationOptions:
    """How to calibrate. Every field is an option of ``trtkp calibrate``.

    Attributes:
        calibrator: how ranges are found: ``min-max``, ``entropy`` or ``percentile``.
        percentile: percentile of absolute activation values used as the range, for ``percentile``.
        samples: largest number of samples used for ranges, spread over the data. Accuracy is measured on all samples.
        max_drop: percentage points of accuracy that may be lost; None for 0.5 if the model is a classifier.
        fallback: type of the layers that are not quantised, fp32 or fp16; None for fp32 with onnxruntime, fp16 with
            TensorRT.
        mean: subtracted from images scaled to 0..1; one value, or one per channel.
        std: then divides them; one value, or one per channel.
    """

    calibrator: str = "min-max"
    percentile: float = 99.99
    samples: int = 256
    max_drop: float | None = None
    fallback: Literal["fp32", "fp16"] | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def check(self) -> None:
        """Check the values.

        Raises:
            InputError: an unknown calibrator or fallback, or a number out of range.
        """
        if self.calibrator not in METHODS:
            raise InputError(f"--calibrator {self.calibrator}: not known", remedy=f"use one of {', '.join(METHODS)}")
        if not 0 < self.percentile <= 100:
            raise InputError(f"--percentile {self.percentile:g}: must be above 0 and at most 100")
        if self.samples < 1:
            raise InputError(f"--samples {self.samples}: at least one is needed")
        if self.max_drop is not None and not self.max_drop >= 0:
            raise InputError(f"--max-drop {self.max_drop:g}: must be 0 or more percentage points")
        if self.fallback not in (None, "fp32", "fp16"):
            raise InputError(f"--fallback {self.fallback}: not known", remedy="use fp32 or fp16")

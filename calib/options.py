"""Options of calibration; light to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trtkp.errors import InputError

__all__ = ["DEFAULT_MAX_DROP", "METHODS", "CalibrationOptions"]

METHODS = ("min-max", "entropy", "percentile")

#: Points of accuracy that may be lost where nothing else is asked for.
DEFAULT_MAX_DROP = 0.5


@dataclass(frozen=True)
class CalibrationOptions:
    """How to calibrate; every field is an option of ``trtkp calibrate``.

    Attributes:
        calibrator: min-max, entropy or percentile.
        percentile: of magnitudes, for percentile.
        samples: at most so many samples are measured, spread over the data; accuracy is measured on all.
        max_drop: points of accuracy that may be lost; None: 0.5 where there is a class to decide.
        fallback: type of the layers that are not quantised, fp32 or fp16; None: fp32 for onnxruntime, else fp16.
        mean: of images in 0..1, per channel or one for all.
        std: likewise.
    """

    calibrator: str = "min-max"
    percentile: float = 99.99
    samples: int = 256
    max_drop: float | None = None
    fallback: Literal["fp32", "fp16"] | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def check(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            InputError: an unknown calibrator or fallback, or a number out of range.
        """
        if self.calibrator not in METHODS:
            raise InputError(f"--calibrator {self.calibrator}: not known", remedy=f"use one of {', '.join(METHODS)}")
        if not 0 < self.percentile <= 100:
            raise InputError(f"--percentile {self.percentile:g}: not above 0 and at most 100")
        if self.samples < 1:
            raise InputError(f"--samples {self.samples}: at least one is needed")
        if self.max_drop is not None and not self.max_drop >= 0:
            raise InputError(f"--max-drop {self.max_drop:g}: not a number of points")
        if self.fallback not in (None, "fp32", "fp16"):
            raise InputError(f"--fallback {self.fallback}: not known", remedy="use fp32 or fp16")

"""How images are normalised: settings that calibration, comparison and training share."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from trtkp.settings import Setting

__all__ = ["SAMPLE_FILES", "Mean", "Std"]

#: The files that ``--data`` takes, in its help.
SAMPLE_FILES = "an .npz of x and y, a folder of images, or CIFAR batches"

Mean: TypeAlias = Annotated[
    tuple[float, ...],
    Setting(
        "Mean of images with values in 0..1: one number, or one for each channel, as 0.485,0.456,0.406.", group="Data"
    ),
]
Std: TypeAlias = Annotated[
    tuple[float, ...], Setting("Standard deviation of images, written as --mean is.", gt=0, group="Data")
]

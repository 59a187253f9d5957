"""Parameters that mean the same in several commands and are no option of a settings class."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

from trtkp.pruning.methods.registry import METHODS
from trtkp.settings import Setting

__all__ = ["BundlePath", "Data", "FromZeros", "Json", "MethodName", "ModelPath"]

_MASKING = [name for name, kind in METHODS.items() if kind.option is None and not kind.converts]
#: They need training, so ``trtkp build`` cannot take them.
_CONVERTING = [name for name, kind in METHODS.items() if kind.converts]

ModelPath: TypeAlias = Annotated[Path, Setting("Exported program, state dict or ONNX file.", argument=True)]
BundlePath: TypeAlias = Annotated[Path, Setting("Directory that trtkp build wrote.", argument=True)]
Data: TypeAlias = Annotated[
    Path | None,
    Setting(
        "Samples to measure accuracy and to calibrate with: .npz of x and y, folder of images, or CIFAR batches.",
        essential=True,
    ),
]
Json: TypeAlias = Annotated[bool, Setting("Print one JSON document on standard output.", essential=True)]
MethodName: TypeAlias = Annotated[
    str | None,
    Setting(
        f"Pruning method: {', '.join(_MASKING)}; with trtkp prune also {', '.join(_CONVERTING)}.",
        default="kep",
        short="-m",
        group="Pruning",
        essential=True,
    ),
]
FromZeros: TypeAlias = Annotated[
    bool,
    Setting("Prune nothing more: use the zeros that are there.", group="Pruning", essential=True),
]

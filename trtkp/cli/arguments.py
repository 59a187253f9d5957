"""Parameters that mean the same in several commands and are no option of a settings class."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

from trtkp.data.options import SAMPLE_FILES
from trtkp.pruning.methods.registry import DEFAULT, METHODS
from trtkp.settings import Setting

__all__ = ["BundlePath", "Data", "FromZeros", "Json", "MethodName", "ModelPath"]


def _names(*, converts: bool) -> str:
    """The methods that ``--method`` takes: those that make another net, which needs training, or the others."""
    return ", ".join(name for name, method in METHODS.items() if method.converts == converts and method.option is None)


ModelPath: TypeAlias = Annotated[Path, Setting("Exported program, state dict or ONNX file.", argument=True)]
BundlePath: TypeAlias = Annotated[Path, Setting("Directory that trtkp build wrote.", argument=True)]
Data: TypeAlias = Annotated[
    Path | None,
    Setting(
        f"Samples to measure accuracy and to calibrate with: {SAMPLE_FILES}.",
        essential=True,
    ),
]
Json: TypeAlias = Annotated[bool, Setting("Print one JSON document on standard output.", essential=True)]
MethodName: TypeAlias = Annotated[
    str | None,
    Setting(
        f"Pruning method: {_names(converts=False)} (dense); with trtkp prune also {_names(converts=True)}.",
        default=DEFAULT,
        short="-m",
        group="Pruning",
        essential=True,
    ),
]
FromZeros: TypeAlias = Annotated[
    bool,
    Setting("Prune nothing more: use the zeros that are there.", group="Pruning", essential=True),
]

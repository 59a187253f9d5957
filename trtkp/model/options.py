"""How a model is loaded and which shapes it gets: settings that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeAlias

from trtkp.settings import Setting

__all__ = ["Arch", "InputShape", "MaxShapes", "MinShapes", "OptShapes", "TrustPickle"]

Arch: TypeAlias = Annotated[
    str | None,
    Setting("Network of a state dict, as package.module:factory.", group="Model", metavar="name", essential=True),
]
InputShape: TypeAlias = Annotated[
    Sequence[str],
    Setting(
        "Input shape where the model file leaves it open; repeatable.", group="Model", metavar="shape", essential=True
    ),
]
TrustPickle: TypeAlias = Annotated[
    bool,
    Setting("Load files that can run code: pickled modules and TorchScript.", group="Model"),
]
MinShapes: TypeAlias = Annotated[
    Sequence[str],
    Setting("Smallest input shape, written as --opt is; repeatable.", group="Engine", metavar="shape"),
]
OptShapes: TypeAlias = Annotated[
    Sequence[str],
    Setting(
        "Usual input shape, for which plans are made, as 1x3x224x224 or name:1x3x224x224; repeatable.",
        group="Engine",
        metavar="shape",
        essential=True,
    ),
]
MaxShapes: TypeAlias = Annotated[
    Sequence[str], Setting("Largest input shape; repeatable.", group="Engine", metavar="shape")
]

"""How a model is loaded and which shapes it gets: settings that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeAlias

from trtkp.settings import Setting

__all__ = ["Arch", "InputShape", "MaxShapes", "MinShapes", "OptShapes", "TrustPickle"]

Arch: TypeAlias = Annotated[
    str | None,
    Setting("Network of a state dict, as package.module:factory.", group="Model", essential=True),
]
InputShape: TypeAlias = Annotated[
    Sequence[str],
    Setting(
        "Shape of an input whose size the model file leaves open, as 1x3x224x224 or name:1x3x224x224; repeatable.",
        group="Model",
        essential=True,
    ),
]
TrustPickle: TypeAlias = Annotated[
    bool,
    Setting(
        "Load model files that can run code: pickled modules and TorchScript.",
        group="Model",
        essential=True,
    ),
]
MinShapes: TypeAlias = Annotated[
    Sequence[str],
    Setting(
        "Smallest shape of an input, as 1x3x224x224 or name:1x3x224x224; repeatable.", group="Engine", essential=True
    ),
]
OptShapes: TypeAlias = Annotated[
    Sequence[str],
    Setting("Usual shape of an input; plans are made for it.", group="Engine", essential=True),
]
MaxShapes: TypeAlias = Annotated[Sequence[str], Setting("Largest shape of an input.", group="Engine", essential=True)]

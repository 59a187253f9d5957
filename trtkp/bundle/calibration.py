"""``calibration.json``: how ranges were found, every tensor's range and scale, every layer's precision.

The file is meant to be read and edited: an ``amax`` with its ``scale`` left out, or a layer's precision set to
``fp32``, is taken as it stands by ``trtkp build --calibration``. Nothing in it depends on time or place: the same data,
model and options give the same bytes.
"""

from __future__ import annotations

import json
import math
from os import PathLike
from pathlib import Path
from typing import Any, Final, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trtkp.engine.base import QuantisedForm, fuses_qdq
from trtkp.errors import InputError

__all__ = [
    "CALIBRATION",
    "Calibration",
    "DataRecord",
    "LayerChoice",
    "Scores",
    "TensorRange",
    "load_calibration",
    "save_calibration",
    "scale_of",
]

#: Name of the file in a bundle.
CALIBRATION = "calibration.json"
FORMAT: Final = "trtkp.calibration"
#: Scales are float32; an edited file may round them.
_SCALE_TOLERANCE = 1e-5


def scale_of(amax: float, limit: float = 127.0) -> float:
    """The scale of a tensor of that largest magnitude, ``amax / limit`` in float32; 1 where everything is zero."""
    return float(np.float32(amax) / np.float32(limit)) or 1.0


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorRange(_Record):
    """What a tensor held on the data, the magnitude from which it is clipped, and the int8 scale ``amax / 127``."""

    low: float
    high: float
    amax: float = Field(ge=0, allow_inf_nan=False)
    scale: float = Field(gt=0, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _derive_scale(cls, data: Any) -> Any:
        if isinstance(data, dict) and "scale" not in data and isinstance(data.get("amax"), int | float):
            return {**data, "scale": scale_of(data["amax"])}
        return data

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if not math.isclose(self.scale, scale_of(self.amax), rel_tol=_SCALE_TOLERANCE):
            raise ValueError(f"scale {self.scale:g} is not amax / 127 of amax {self.amax:g}; leave the scale out")
        return self


class LayerChoice(_Record):
    """How a layer computes.

    Attributes:
        precision: int8, fp8, or the floating-point type that it was sent back to.
        error: relative error of the net's output when this layer alone is quantised; None where it was not measured.
        lowering: the form that it had in the planned graph; None for one that was not packed.
        reason: why it is not quantised.
    """

    precision: Literal["int8", "fp8", "fp32", "fp16"]
    error: float | None = None
    lowering: str | None = None
    reason: str | None = None


class DataRecord(_Record):
    """The samples that ranges were measured on."""

    name: str
    sha256: str
    samples: int
    shape: list[int]


class Scores(_Record):
    """The net in floating point, with every layer quantised, and as it was kept.

    Attributes:
        measure: ``accuracy`` against labels; ``agreement`` with the decisions of the net in floating point where the
            data has no labels; None where the net decides nothing (its first output is not [N, classes]).
        samples: scored.
        error: relative Frobenius error of the kept net's outputs.
        drop: points of `measure` that were lost, and `max_drop` those that were allowed.
    """

    measure: Literal["accuracy", "agreement"] | None
    samples: int
    floating: float | None = None
    all_quantised: float | None = None
    kept: float | None = None
    drop: float | None = None
    max_drop: float | None = None
    error: float


class Calibration(_Record):
    """The file, version 1.

    Attributes:
        kind: type of the quantised layers.
        form: which tensors are quantised (`trtkp.calib.placement`).
        fallback: type of the other layers.
        method: that ranges were found by.
        percentile: of magnitudes, for the method percentile.
        data: that ranges were found on.
        scores: what quantising costs on all of the data.
        layers: by parameter name of the weight.
        tensors: by name in the planned graph.
    """

    format: Literal["trtkp.calibration"] = FORMAT
    version: Literal[1] = 1
    kind: Literal["int8", "fp8"]
    form: QuantisedForm
    fallback: Literal["fp32", "fp16"]
    method: Literal["min-max", "entropy", "percentile"]
    percentile: float | None = None
    data: DataRecord
    scores: Scores
    layers: dict[str, LayerChoice]
    tensors: dict[str, TensorRange]

    @property
    def quantised(self) -> set[str]:
        """Names of the layers in 8 bits."""
        return {name for name, choice in self.layers.items() if choice.precision == self.kind}

    @property
    def fuse_qdq(self) -> bool:
        """Whether ONNX Runtime may make integer kernels of the graph's Q/DQ pairs."""
        return fuses_qdq(self.form)


def save_calibration(calibration: Calibration, path: Path) -> None:
    """Write the file; floats in their shortest exact form."""
    text = json.dumps(calibration.model_dump(mode="json"), indent=1, sort_keys=True, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def load_calibration(path: str | PathLike[str]) -> Calibration:
    """Read the file.

    Raises:
        InputError: no such file, not a calibration, or values that contradict each other.
    """
    path = Path(path)
    if path.is_dir():
        path /= CALIBRATION
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError("no such file", file=path, remedy="write one with trtkp calibrate") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read ({type(error).__name__})", file=path) from None
    try:
        return Calibration.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(
            f"is no calibration: {': '.join(filter(None, [where, message]))}", file=path,
            remedy="write one with trtkp calibrate",
        ) from None  # fmt: skip

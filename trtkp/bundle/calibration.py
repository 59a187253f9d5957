"""``calibration.json``: how the ranges were found, the range and scale of every tensor, the precision of every layer.

Users may edit the file and pass it to ``trtkp build --calibration``. To change a range, edit ``amax`` and delete
``scale``; to take a layer out of quantisation, set its precision to ``fp32``. The file holds no time stamp and no path:
the same data, model and options give the same bytes.
"""

from __future__ import annotations

import json
import math
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any, Final, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trtkp.engine.base import QdqVariant, fuses_qdq
from trtkp.errors import InputError
from trtkp.files import parse_json, read_file

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
#: A scale may differ from ``amax / 127`` by this relative error. Scales are float32 (2**-23, about 1.2e-7); people who
#: edit the file round to five or six digits.
_SCALE_TOLERANCE = 1e-5


def scale_of(amax: float, limit: float = 127.0) -> float:
    """The scale of a symmetric range: ``amax / limit``, rounded to float32.

    Args:
        amax: the largest magnitude to represent.
        limit: the largest quantised value: 127 for int8, 255 for uint8, 448 for FP8 (E4M3).

    Returns:
        The scale; 1.0 for ``amax == 0``, because a tensor of zeros still needs a scale to divide by.

    Example:
        >>> scale_of(2.54)
        0.019999999552965164
        >>> scale_of(0.0)
        1.0
    """
    return float(np.float32(amax) / np.float32(limit)) or 1.0


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorRange(_Record):
    """The range of one tensor.

    Attributes:
        low: smallest value seen on the calibration data.
        high: largest value seen.
        amax: magnitude beyond which values are clipped.
        scale: the int8 scale, ``amax / 127``; derived from ``amax`` where the file leaves it out.
    """

    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)
    amax: float = Field(ge=0, allow_inf_nan=False)
    scale: float = Field(gt=0, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _derive_scale(cls, data: Any) -> Any:
        if isinstance(data, dict) and "scale" not in data and isinstance(data.get("amax"), int | float):
            with suppress(OverflowError):  # an integer that no float holds: said of amax
                return {**data, "scale": scale_of(data["amax"])}
        return data

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low {self.low:g} is above high {self.high:g}")
        if not math.isclose(self.scale, scale_of(self.amax), rel_tol=_SCALE_TOLERANCE):
            raise ValueError(f"scale {self.scale:g} is not amax / 127 for amax {self.amax:g}; leave the scale out")
        return self


class LayerChoice(_Record):
    """The precision of one layer.

    Attributes:
        precision: int8, fp8, or the floating-point type the layer falls back to.
        error: relative error of the net's output when this layer alone is quantised; None where it was not measured.
        lowering: the layer's lowering in the planned graph; None for a layer that was not packed.
        reason: why the layer is not quantised; None where it is.
    """

    precision: Literal["int8", "fp8", "fp32", "fp16"]
    error: float | None = None
    lowering: str | None = None
    reason: str | None = None


class DataRecord(_Record):
    """The samples on which the ranges were measured."""

    name: str
    sha256: str
    samples: int
    shape: list[int]


class Scores(_Record):
    """Scores of the floating-point net, of the net with every layer quantised, and of the net that was kept.

    Attributes:
        measure: ``accuracy`` against labels, or ``agreement`` with the floating-point net's decisions where the data
            has no labels. None where the net makes no decision (its first output is not [N, classes]).
        samples: number of samples scored.
        floating: score of the floating-point net, in [0, 1].
        all_quantised: score with every layer quantised, in [0, 1].
        kept: score of the net that was kept, in [0, 1].
        drop: percentage points of `measure` that the kept net lost.
        max_drop: percentage points that it was allowed to lose.
        error: relative Frobenius error of the kept net's outputs.
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
    """The content of ``calibration.json``, version 1.

    Attributes:
        kind: type of the quantised layers.
        form: Q/DQ variant, that is which tensors are quantised (`trtkp.calib.placement`).
        fallback: type of the layers that are not quantised.
        method: how the ranges were found.
        percentile: percentile of absolute activation values used as the range; None for the other methods.
        data: the samples on which the ranges were found.
        scores: scores over all samples of the data.
        layers: precision of each layer, by the parameter name of its weight.
        tensors: range of each tensor, by its name in the planned graph.
    """

    format: Literal["trtkp.calibration"] = FORMAT
    version: Literal[1] = 1
    kind: Literal["int8", "fp8"]
    form: QdqVariant
    fallback: Literal["fp32", "fp16"]
    method: Literal["min-max", "entropy", "percentile"]
    percentile: float | None = None
    data: DataRecord
    scores: Scores
    layers: dict[str, LayerChoice]
    tensors: dict[str, TensorRange]

    @property
    def quantised(self) -> set[str]:
        """Names of the quantised layers."""
        return {name for name, choice in self.layers.items() if choice.precision == self.kind}

    @property
    def fuse_qdq(self) -> bool:
        """Whether ONNX Runtime may make integer kernels of the graph's Q/DQ pairs."""
        return fuses_qdq(self.form)


def save_calibration(calibration: Calibration, path: Path) -> None:
    """Write the calibration as JSON with sorted keys, so that equal calibrations give equal bytes."""
    text = json.dumps(calibration.model_dump(mode="json"), indent=1, sort_keys=True, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def load_calibration(path: str | PathLike[str]) -> Calibration:
    """Read a calibration.

    Args:
        path: a ``calibration.json``, or a bundle that holds one.

    Raises:
        InputError: the file is missing, is not a calibration, or holds values that contradict each other.
    """
    path = Path(path)
    if path.is_dir():
        path /= CALIBRATION
    remedy = "write one with trtkp calibrate"
    text = read_file(path, "file", remedy)
    try:
        parse_json(text)  # pydantic takes the last of two values of one name
    except ValueError as error:
        raise InputError(f"is not a valid calibration: {error}", file=path, remedy=remedy) from None
    try:
        return Calibration.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(
            f"is not a valid calibration: {': '.join(filter(None, [where, message]))}", file=path,
            remedy=remedy,
        ) from None  # fmt: skip

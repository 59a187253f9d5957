"""The two methods that prune nothing: keep the model dense, or take the zeros that are already there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from trtkp.prune.conv_layer import ConvLayer
from trtkp.prune.index_set import MAX_TAPS
from trtkp.prune.method import Masks

__all__ = ["Dense", "FromZeros"]


@dataclass(frozen=True)
class Dense:
    """``--method none``: every layer stays as it is."""

    name = "none"

    def inapplicable(self, layer: ConvLayer) -> str | None:
        """Nothing is pruned."""
        return "method none"

    def out_of_scope(self, layer: ConvLayer) -> str | None:
        """Nothing is out of scope."""
        return None

    def masks(self, layers: Sequence[ConvLayer], weights: Mapping[str, npt.NDArray[Any]]) -> Masks:
        """No mask."""
        return {}

    def settings(self) -> dict[str, Any]:
        """No hyper-parameters."""
        return {}


@dataclass(frozen=True)
class FromZeros:
    """``--from-zeros``: the mask is where the weight is not zero, for every layer that holds zeros."""

    name = "from-zeros"

    def inapplicable(self, layer: ConvLayer) -> str | None:
        """Index sets hold at most 64 taps."""
        if layer.taps > MAX_TAPS:
            return f"{layer.kernel[0]}x{layer.kernel[1]} kernel: index sets hold at most {MAX_TAPS} taps"
        return None

    def out_of_scope(self, layer: ConvLayer) -> str | None:
        """Nothing is out of scope."""
        return None

    def masks(self, layers: Sequence[ConvLayer], weights: Mapping[str, npt.NDArray[Any]]) -> Masks:
        """Masks of the layers that hold a zero."""
        masks = {layer.name: weights[layer.name] != 0 for layer in layers}
        return {name: mask for name, mask in masks.items() if not mask.all()}

    def settings(self) -> dict[str, Any]:
        """No hyper-parameters."""
        return {}

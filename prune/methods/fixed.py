"""The methods that decide nothing: keep the model dense, take the zeros that are there, or index sets made before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from trtkp.errors import InputError
from trtkp.index.conv_layer import ConvLayer
from trtkp.index.index_set import MAX_TAPS, IndexSet
from trtkp.pruning.method import Counting, Masks, Method, NetCounts

__all__ = ["Dense", "FromZeros", "Stored"]


@dataclass(frozen=True)
class Dense(Method):
    """``--method none``: every layer stays as it is."""

    name = "none"

    def inapplicable(self, layer: ConvLayer) -> str | None:
        """Nothing is pruned."""
        return "method none"

    def masks(self, layers: Sequence[ConvLayer], weights: Mapping[str, npt.NDArray[Any]]) -> Masks:
        """No mask."""
        return {}

    def notes(self, *, pruned: bool, folded: bool) -> list[str]:
        """A dense engine is what was asked for."""
        del pruned, folded
        return []


@dataclass(frozen=True)
class FromZeros(Method):
    """``--from-zeros``: the mask is where the weight is not zero, for every layer that holds zeros."""

    name = "from-zeros"
    option = "--from-zeros"

    def inapplicable(self, layer: ConvLayer) -> str | None:
        """Index sets hold at most 64 taps."""
        if layer.taps > MAX_TAPS:
            return f"{layer.kernel[0]}x{layer.kernel[1]} kernel: index sets hold at most {MAX_TAPS} taps"
        return None

    def masks(self, layers: Sequence[ConvLayer], weights: Mapping[str, npt.NDArray[Any]]) -> Masks:
        """Masks of the layers that hold a zero."""
        masks = {layer.name: weights[layer.name] != 0 for layer in layers}
        return {name: mask for name, mask in masks.items() if not mask.all()}

    def notes(self, *, pruned: bool, folded: bool) -> list[str]:
        """Nothing was scored, so folded batch normalisation is no matter."""
        del folded
        return super().notes(pruned=pruned, folded=False)


@dataclass(frozen=True)
class Stored(Method):
    """Index sets that a method made before, for the weights that it left.

    Args:
        name: of that method.
        used: its settings.
        index_sets: by parameter name.
        reasons: why other layers were left dense.
        paper_bytes: index bytes of layers in the method's own format, where it has one.
        matrices: weights that pruned fully connected layers keep, by parameter name.
        origin: that method with those settings; None where it is not known here.
    """

    name: str
    used: Mapping[str, Any]
    index_sets: Mapping[str, IndexSet]
    reasons: Mapping[str, str]
    paper_bytes: Mapping[str, int]
    matrices: Mapping[str, int] = field(default_factory=dict)
    origin: Method | None = None

    def inapplicable(self, layer: ConvLayer) -> str | None:
        """Only what has an index set can be pruned."""
        return None if layer.name in self.index_sets else self.reasons.get(layer.name, "it has no index set")

    def masks(self, layers: Sequence[ConvLayer], weights: Mapping[str, npt.NDArray[Any]]) -> Masks:
        """The masks of the index sets.

        Raises:
            InputError: a weight of another shape, or one that is not zero where its mask says so.
        """
        masks = {layer.name: self.index_sets[layer.name].mask() for layer in layers}
        for name, mask in masks.items():
            if weights[name].shape != mask.shape or weights[name][~mask].any():
                raise InputError("its weight and its index set do not fit", layer=name, remedy="prune the model again")
        return masks

    def settings(self) -> dict[str, Any]:
        """As the method had them."""
        return dict(self.used)

    def stored(self) -> Mapping[str, IndexSet]:
        """The index sets themselves: their lists cannot be read from a mask."""
        return self.index_sets

    def stored_matrices(self) -> Mapping[str, int]:
        """As they were recorded."""
        return self.matrices

    def notes(self, *, pruned: bool, folded: bool) -> list[str]:
        """Those of the method; that it pruned nothing was said when it did."""
        if not pruned:
            return []
        if self.origin is not None:
            return self.origin.notes(pruned=True, folded=folded)
        return super().notes(pruned=True, folded=folded)

    def coarser(self) -> str | None:
        """As the method says."""
        return self.origin.coarser() if self.origin is not None else None

    def paper_bytes_by_layer(self, index_sets: Mapping[str, IndexSet]) -> dict[str, int]:
        """As they were recorded."""
        return {name: size for name, size in self.paper_bytes.items() if name in index_sets}

    def paper_counting(self, dense_params: int, net: NetCounts) -> Counting | None:
        """As the method's authors count."""
        return self.origin.paper_counting(dense_params, net) if self.origin is not None else None

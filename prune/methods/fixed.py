"""Methods that score nothing: keep the model dense, use the zeros in its weights, or use stored index sets."""

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
        """Every layer: nothing is pruned."""
        return "method none"

    def masks(self, layers: Sequence[ConvLayer], weights: Mapping[str, npt.NDArray[Any]]) -> Masks:
        """No masks."""
        return {}

    def notes(self, *, pruned: bool, folded: bool) -> list[str]:
        """No warnings: a dense engine is what the user asked for."""
        del pruned, folded
        return []


@dataclass(frozen=True)
class FromZeros(Method):
    """``--from-zeros``: remove nothing, and pack the zeros that the weights already hold, whatever made them.

    Example:
        >>> import numpy as np
        >>> conv = ConvLayer("conv.weight", "conv", filters=1, channels=2, kernel=(1, 1), strides=(1, 1),
        ...                  pads=(0, 0, 0, 0), dilations=(1, 1), groups=1, input_size=(8, 8), output_size=(8, 8),
        ...                  bias=False, stem=False)
        >>> weight = np.array([0.5, 0.0]).reshape(1, 2, 1, 1)
        >>> FromZeros().masks([conv], {"conv.weight": weight})["conv.weight"].ravel().tolist()
        [True, False]
    """

    name = "from-zeros"
    option = "--from-zeros"

    def inapplicable(self, layer: ConvLayer) -> str | None:
        """Kernels with more taps than an index set holds."""
        if layer.taps > MAX_TAPS:
            return f"{layer.kernel[0]}x{layer.kernel[1]} kernel: index sets hold at most {MAX_TAPS} taps"
        return None

    def masks(self, layers: Sequence[ConvLayer], weights: Mapping[str, npt.NDArray[Any]]) -> Masks:
        """True where a weight is not zero; layers without a zero have no mask."""
        masks = {layer.name: weights[layer.name] != 0 for layer in layers}
        return {name: mask for name, mask in masks.items() if not mask.all()}

    def notes(self, *, pruned: bool, folded: bool) -> list[str]:
        """As `Method.notes`, but folded batch normalisation does not matter: nothing is scored."""
        del folded
        return super().notes(pruned=pruned, folded=False)


@dataclass(frozen=True)
class Stored(Method):
    """Index sets that ``trtkp prune`` stored, for the weights that it wrote.

    Args:
        name: name of the method that made them.
        used: the settings of that method.
        index_sets: the index sets, by parameter name.
        reasons: for each other layer, the reason why it was left dense.
        paper_bytes: index bytes of layers in the format of the method's paper, if it has one.
        matrices: number of weights that pruned fully connected layers keep, by parameter name.
        origin: that method with those settings; None if this version does not know it.
    """

    name: str
    used: Mapping[str, Any]
    index_sets: Mapping[str, IndexSet]
    reasons: Mapping[str, str]
    paper_bytes: Mapping[str, int]
    matrices: Mapping[str, int] = field(default_factory=dict)
    origin: Method | None = None

    def inapplicable(self, layer: ConvLayer) -> str | None:
        """Layers without a stored index set."""
        return None if layer.name in self.index_sets else self.reasons.get(layer.name, "it has no index set")

    def masks(self, layers: Sequence[ConvLayer], weights: Mapping[str, npt.NDArray[Any]]) -> Masks:
        """The masks of the stored index sets.

        Raises:
            InputError: a weight has another shape, or is not zero where its mask is False.
        """
        masks = {layer.name: self.index_sets[layer.name].mask() for layer in layers}
        for name, mask in masks.items():
            if weights[name].shape != mask.shape or weights[name][~mask].any():
                raise InputError("its weight and its index set do not fit", layer=name, remedy="prune the model again")
        return masks

    def settings(self) -> dict[str, Any]:
        """The settings of the method that made the index sets."""
        return dict(self.used)

    def stored(self) -> Mapping[str, IndexSet]:
        """The index sets themselves: a mask does not say how filters share lists."""
        return self.index_sets

    def stored_matrices(self) -> Mapping[str, int]:
        """The recorded numbers."""
        return self.matrices

    def notes(self, *, pruned: bool, folded: bool) -> list[str]:
        """The warnings of the method. If it pruned nothing, ``trtkp prune`` has already said so."""
        if not pruned:
            return []
        if self.origin is not None:
            return self.origin.notes(pruned=True, folded=folded)
        return super().notes(pruned=True, folded=folded)

    def coarser(self) -> str | None:
        """The advice of the method that made the index sets."""
        return self.origin.coarser() if self.origin is not None else None

    def paper_bytes_by_layer(self, index_sets: Mapping[str, IndexSet]) -> dict[str, int]:
        """The recorded sizes."""
        return {name: size for name, size in self.paper_bytes.items() if name in index_sets}

    def paper_counting(self, dense_params: int, net: NetCounts) -> Counting | None:
        """As the authors of that method count."""
        return self.origin.paper_counting(dense_params, net) if self.origin is not None else None

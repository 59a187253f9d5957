"""What pruning leaves of a net: retained parameters and MACs per layer and in all, index bytes beside them.

Common counting: 1 MAC = 1 FLOP; MACs of convolutions and fully connected layers for one sample, learnable parameters.
Biases are parameters that stay, and cost no MACs. Index bytes are never added to anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from trtkp.errors import InputError
from trtkp.index.conv_layer import ConvLayer
from trtkp.index.index_set import IndexSet, Kind

__all__ = ["Accounting", "Cost", "LayerCost", "Matrix", "account"]


@dataclass(frozen=True)
class Cost:
    """Something before pruning and after."""

    dense: int
    retained: int

    @property
    def removed(self) -> Fraction:
        """Share removed, exact; 0 of nothing."""
        return Fraction(self.dense - self.retained, self.dense) if self.dense else Fraction(0)


@dataclass(frozen=True)
class LayerCost:
    """One convolution node. ``kind`` is None and ``index_bytes`` 0 where the layer is dense."""

    name: str
    node: str
    kind: Kind | None
    density: float
    params: Cost
    macs: Cost
    index_bytes: int


@dataclass(frozen=True)
class Matrix:
    """The weight of a fully connected layer, and the MACs for one sample of all products that read it."""

    name: str
    weights: int
    macs: int


@dataclass(frozen=True)
class Accounting:
    """Every convolution node in graph order, and the totals of the net with all its other operators.

    A weight that serves several nodes counts once in the totals' params and index bytes, and at each node in MACs.
    """

    layers: tuple[LayerCost, ...]
    params: Cost
    macs: Cost
    index_bytes: int


def account(
    layers: Iterable[ConvLayer],
    params: int,
    macs: int,
    index_sets: Mapping[str, IndexSet],
    matrices: Mapping[Matrix, int] | None = None,
) -> Accounting:
    """Costs of a net whose dense totals are ``params`` and ``macs``, pruned to ``index_sets``.

    ``matrices`` are the pruned weights of fully connected layers, with the number that each keeps. They have no index
    sets: their zeros are in the totals alone.

    Raises:
        InputError: an index set of no layer, or of another weight shape or number of groups than its layer.
    """
    costs = tuple(_layer_cost(layer, index_sets.get(layer.name)) for layer in layers)
    once = {cost.name: cost for cost in costs}
    for name in index_sets:
        if name not in once:
            raise InputError("index set of no layer", layer=name, remedy="take index sets made for this model")
    removed_params = sum(cost.params.dense - cost.params.retained for cost in once.values())
    removed_macs = sum(cost.macs.dense - cost.macs.retained for cost in costs)
    for matrix, kept in (matrices or {}).items():
        removed_params += matrix.weights - kept
        removed_macs += matrix.macs // matrix.weights * (matrix.weights - kept)
    return Accounting(
        layers=costs,
        params=Cost(params, params - removed_params),
        macs=Cost(macs, macs - removed_macs),
        index_bytes=sum(cost.index_bytes for cost in once.values()),
    )


def _layer_cost(layer: ConvLayer, index: IndexSet | None) -> LayerCost:
    if index is not None and (index.shape, index.groups) != (layer.weight_shape, layer.groups):
        raise InputError(
            f"weight is {layer.weight_shape} in {layer.groups} groups, its index set is for {index.shape} in "
            f"{index.groups}",
            layer=layer.name,
            remedy="take index sets made for this model",
        )
    retained = layer.weight_count if index is None else index.retained
    removed = layer.weight_count - retained
    return LayerCost(
        name=layer.name,
        node=layer.node,
        kind=None if index is None else index.kind,
        density=retained / layer.weight_count,
        params=Cost(layer.params, layer.params - removed),
        macs=Cost(layer.macs, retained * layer.macs_per_weight),
        index_bytes=0 if index is None else index.nbytes,
    )

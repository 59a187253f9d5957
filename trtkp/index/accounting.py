"""Accounting: the parameters and MACs that remain after pruning, per layer and for the whole net.

The counting is the one that most papers use: 1 MAC counts as 1 FLOP. MACs are those of convolutions and fully connected
layers for one sample. Parameters are the learnable ones. Biases are never pruned and cost no MACs. The bytes of the
index sets are reported separately and never added to anything.
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
    """A count before and after pruning.

    Example:
        >>> Cost(dense=200, retained=50).removed
        Fraction(3, 4)
    """

    dense: int
    retained: int

    @property
    def removed(self) -> Fraction:
        """Share removed, as an exact fraction; 0 if there was nothing."""
        return Fraction(self.dense - self.retained, self.dense) if self.dense else Fraction(0)


@dataclass(frozen=True)
class LayerCost:
    """Costs of one convolution node. A dense layer has ``kind`` None and ``index_bytes`` 0."""

    name: str
    node: str
    kind: Kind | None
    density: float
    params: Cost
    macs: Cost
    index_bytes: int


@dataclass(frozen=True)
class Matrix:
    """The weight of a fully connected layer: name, number of weights, and the MACs per sample of all its products."""

    name: str
    weights: int
    macs: int


@dataclass(frozen=True)
class Accounting:
    """Costs of every convolution node in graph order, and the totals of the whole net.

    A weight that serves several nodes counts once in the total of the parameters and of the index bytes, but once per
    node in the MACs.
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
    """The costs of a pruned net.

    Args:
        layers: the convolutions of the net, in graph order.
        params: learnable parameters of the dense net.
        macs: MACs of the dense net for one sample.
        index_sets: index set by parameter name; a layer without one is dense.
        matrices: pruned weights of fully connected layers, with the number of weights that each keeps. They have no
            index sets, so their zeros show in the totals only.

    Raises:
        InputError: an index set belongs to no layer, or its weight shape or number of groups differs from its layer's.
    """
    costs = tuple(_layer_cost(layer, index_sets.get(layer.name)) for layer in layers)
    once = {cost.name: cost for cost in costs}
    for name in index_sets:
        if name not in once:
            raise InputError("the model has no such layer", layer=name, remedy="take index sets made for this model")
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

"""What pruning leaves: parameters, MACs and index bytes, per layer and for the net.

One MAC is one FLOP. Retained parameters are non-zero positions of the masks plus everything that is not pruned; index
bytes are always a figure of their own. A weight that serves two nodes counts once in parameters and twice in MACs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trtkp.prune.conv_layer import ConvLayer
from trtkp.prune.index_set import IndexSet

__all__ = ["Accounting", "LayerAccount", "account"]


@dataclass(frozen=True)
class LayerAccount:
    """One convolution node, dense and retained; biases are in the parameters."""

    name: str
    node: str
    kind: str
    density: float
    dense_params: int
    retained_params: int
    dense_macs: int
    retained_macs: int
    index_bytes: int


@dataclass(frozen=True)
class Accounting:
    """All convolutions, and the net's totals before and after."""

    layers: tuple[LayerAccount, ...]
    dense_params: int
    retained_params: int
    dense_macs: int
    retained_macs: int
    index_bytes: int


def account(layers: Sequence[ConvLayer], params: int, macs: int, index_sets: Mapping[str, IndexSet]) -> Accounting:
    """Count a net of ``params`` learnable parameters and ``macs`` MACs per sample, pruned to the given index sets."""
    counted = tuple(_layer(layer, index_sets.get(layer.name)) for layer in layers)
    pruned = {
        layer.name: layer.weight_count - index_sets[layer.name].retained for layer in layers if layer.name in index_sets
    }
    return Accounting(
        layers=counted,
        dense_params=params,
        retained_params=params - sum(pruned.values()),
        dense_macs=macs,
        retained_macs=macs - sum(layer.dense_macs - layer.retained_macs for layer in counted),
        index_bytes=sum(index.nbytes for index in index_sets.values()),
    )


def _layer(layer: ConvLayer, index: IndexSet | None) -> LayerAccount:
    retained = layer.weight_count if index is None else index.retained
    return LayerAccount(
        name=layer.name,
        node=layer.node,
        kind="dense" if index is None else str(index.kind),
        density=retained / layer.weight_count,
        dense_params=layer.params,
        retained_params=layer.params - layer.weight_count + retained,
        dense_macs=layer.macs,
        retained_macs=retained * layer.macs_per_weight,
        index_bytes=0 if index is None else index.nbytes,
    )

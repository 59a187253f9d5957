"""Retained parameters and MACs by hand, on small tables; the known nets are in the tests of the methods."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from trtkp.errors import InputError
from trtkp.index.accounting import Cost, Matrix, account
from trtkp.index.conv_layer import ConvLayer
from trtkp.index.index_set import Kind, from_mask
from trtkp.pruning.method import Method
from trtkp.pruning.methods.kep import KEP
from trtkp.pruning.methods.l1 import L1
from trtkp.pruning.methods.pptkp import PPTKP
from trtkp.pruning.methods.soks import SOKS
from trtkp.pruning.methods.vskp import VSKP
from trtkp.pruning.one_shot import prune_one_shot

NewLayer = Callable[..., ConvLayer]


def test_costs_by_hand(new_layer: NewLayer) -> None:
    layers = [
        new_layer(name="a", node="a1", output_size=(8, 8)),  # 108 weights, 6912 MACs
        new_layer(name="b", node="b1", filters=2, channels=4, kernel=(1, 1), bias=True, output_size=(3, 5)),
        new_layer(name="c", node="c1", filters=2, channels=1, groups=2, bias=True, output_size=(2, 2)),
    ]
    stripes = np.zeros((4, 3, 3, 3), bool)
    stripes[:2, :, 0, :] = stripes[2:, :, 1, 1] = True  # 18 + 6 weights
    depthwise = np.zeros((2, 1, 3, 3), bool)
    depthwise[0] = True  # 9 weights
    sets = {"a": from_mask(stripes), "c": from_mask(depthwise, groups=2)}
    result = account(layers, 1000, 20_000, sets)
    a, b, c = result.layers
    assert (a.name, a.node, a.kind, a.density) == ("a", "a1", Kind.STRIPE, 24 / 108)
    assert (a.params, a.macs) == (Cost(108, 24), Cost(108 * 64, 24 * 64))
    assert (b.name, b.node, b.kind, b.density, b.index_bytes) == ("b", "b1", None, 1.0, 0)
    assert (b.params, b.macs) == (Cost(8 + 2, 8 + 2), Cost(8 * 15, 8 * 15))
    assert (c.kind, c.density) == (Kind.KERNEL, 0.5)
    assert (c.params, c.macs) == (Cost(18 + 2, 9 + 2), Cost(18 * 4, 9 * 4))
    assert result.params == Cost(1000, 1000 - 84 - 9)
    assert result.macs == Cost(20_000, 20_000 - 84 * 64 - 9 * 4)
    assert a.index_bytes == 4 * 4 + 2 * 3 * 4 + 6 * (2 + 8)
    assert c.index_bytes == 2 * 4 + 2 * 3 * 4 + 1 * (2 + 8)
    assert result.index_bytes == a.index_bytes + c.index_bytes
    assert result.params.removed == Fraction(93, 1000)
    assert Cost(0, 0).removed == 0


def test_weight_of_two_nodes_counts_once_in_params_and_twice_in_macs(new_layer: NewLayer) -> None:
    layers = [new_layer(node="small", output_size=(4, 4)), new_layer(node="large", output_size=(8, 8))]
    mask = np.zeros((4, 3, 3, 3), bool)
    mask[:, 0] = True  # 36 of 108
    index = from_mask(mask)
    result = account(layers, 108, 108 * 80, {"conv.weight": index})
    assert [cost.node for cost in result.layers] == ["small", "large"]
    assert [cost.macs.retained for cost in result.layers] == [36 * 16, 36 * 64]
    assert result.params == Cost(108, 36)
    assert result.macs == Cost(108 * 80, 36 * 80)
    assert result.index_bytes == index.nbytes


def test_nothing_pruned(new_layer: NewLayer) -> None:
    result = account([new_layer()], 500, 7000, {})
    assert (result.params, result.macs, result.index_bytes) == (Cost(500, 500), Cost(7000, 7000), 0)


def test_zeros_of_matrices_are_in_the_totals_alone(new_layer: NewLayer) -> None:
    twice, once = Matrix("mix", 64, 2 * 16 * 64), Matrix("head", 30, 30)
    result = account([new_layer()], 500, 7000, {}, {twice: 40, once: 9})
    assert result.params == Cost(500, 500 - 24 - 21)
    assert result.macs == Cost(7000, 7000 - 2 * 16 * 24 - 21)
    assert [cost.params.removed for cost in result.layers] == [0]


@pytest.mark.parametrize(
    ("name", "mask", "groups", "message"),
    [
        ("ghost", np.ones((4, 3, 3, 3), bool), 1, "layer ghost: the model has no such layer"),
        ("conv.weight", np.ones((4, 2, 3, 3), bool), 1, r"layer conv.weight: weight is \(4, 3, 3, 3\)"),
        ("conv.weight", np.ones((4, 3, 3, 3), bool), 2, "layer conv.weight: weight .* in 1 groups"),
    ],
)
def test_index_set_of_another_model(new_layer: NewLayer, name: str, mask: Any, groups: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        account([new_layer()], 108, 6912, {name: from_mask(mask, groups)})


@pytest.mark.parametrize(
    ("method", "kept"),  # the weights that each layer below keeps
    [
        (VSKP(ratio=0.5, allocation="uniform"), (8 * 6 * 9, 16 * 4 * 9, 16 * 8)),
        (VSKP(ratio=0.3, allocation="uniform"), (8 * 9 * 9, 16 * 6 * 9, 16 * 12)),  # floor(0.3 C) go
        (VSKP(ratio=0.5, allocation="uniform", pointwise=False), (8 * 6 * 9, 16 * 4 * 9, 16 * 16)),
        (VSKP(ratio=0.5, allocation="uniform", nm="2:4"), (8 * 6 * 9, 16 * 4 * 9, 16 * 8)),  # half inside full lists
        (L1(ratio=0.25, allocation="uniform"), (8 * 9 * 9, 16 * 6 * 9, 16 * 12)),
        (PPTKP(ratio=0.5, allocation="uniform"), (48 * 9, 64 * 9, 128)),
        (PPTKP(ratio=0.3, allocation="uniform"), ((96 - 28) * 9, (128 - 38) * 9, 256 - 76)),
        (PPTKP(ratio=0.3, allocation="uniform", equalise=True), (8 * 9 * 9, 16 * 6 * 9, 16 * 12)),
        (SOKS(ratio=4 / 9, groups=2), (96 * 5, 128 * 5, 256)),  # a 1x1 kernel has one position
        (SOKS(ratio=5 / 9, groups=1), (96 * 4, 128 * 4, 256)),
        (SOKS(shapes="ASK_4a"), (96 * 4, 128 * 4, 256)),
        (SOKS(shapes="ASK_7"), (96 * 7, 128 * 7, 256)),
        (KEP(n=2), (96 * 2, 128 * 2, 256)),
        (KEP(n=5, share="per-layer"), (96 * 5, 128 * 5, 256)),
    ],
)
def test_every_method_is_counted_exactly(new_layer: NewLayer, method: Method, kept: tuple[int, ...]) -> None:
    """In integers, from weights to totals: 77 parameters and 999 MACs are of other operators."""
    layers = [
        new_layer(name="a", filters=8, channels=12, output_size=(8, 6)),
        new_layer(name="b", filters=16, channels=8, output_size=(4, 3)),
        new_layer(name="c", filters=16, channels=16, kernel=(1, 1), pads=(0,) * 4, output_size=(4, 3)),
    ]
    outputs = (48, 12, 12)
    rng = np.random.default_rng(3)
    weights = {layer.name: rng.normal(size=layer.weight_shape) for layer in layers}
    dense = (864, 1152, 256)
    params, macs = 77 + sum(dense), 999 + sum(n * size for n, size in zip(dense, outputs, strict=True))
    sets = prune_one_shot(method, layers, weights).index_sets({layer.name: 1 for layer in layers})
    result = account(layers, params, macs, sets)
    assert [cost.params for cost in result.layers] == [Cost(*pair) for pair in zip(dense, kept, strict=True)]
    assert result.params == Cost(params, 77 + sum(kept))
    assert result.macs == Cost(macs, 999 + sum(n * size for n, size in zip(kept, outputs, strict=True)))

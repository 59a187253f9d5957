"""Retained parameters and MACs by hand, on small tables; the known nets are in the tests of the methods."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from trtkp.errors import InputError
from trtkp.prune.accounting import Cost, Matrix, account
from trtkp.prune.conv_layer import ConvLayer
from trtkp.prune.index_set import Kind, from_mask

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
        ("ghost", np.ones((4, 3, 3, 3), bool), 1, "layer ghost: index set of no layer"),
        ("conv.weight", np.ones((4, 2, 3, 3), bool), 1, r"layer conv.weight: weight is \(4, 3, 3, 3\)"),
        ("conv.weight", np.ones((4, 3, 3, 3), bool), 2, "layer conv.weight: weight .* in 1 groups"),
    ],
)
def test_index_set_of_another_model(new_layer: NewLayer, name: str, mask: Any, groups: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        account([new_layer()], 108, 6912, {name: from_mask(mask, groups)})

"""Budgets of grouped lists against those of single kernels: what blocks change is bounded by their rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtkp.index.conv_layer import ConvLayer
from trtkp.pruning.methods.registry import make_method

NewLayer = Callable[..., ConvLayer]

RATIOS = st.integers(0, 19).map(lambda twentieths: twentieths / 20)
SIZES = st.integers(1, 8)


def kept_kernels(method: str, layers: list[ConvLayer], **options: Any) -> dict[str, int]:
    """Kernels that each layer keeps, of weights whose scores are all different."""
    weights = {each.name: np.random.default_rng(i).standard_normal(each.weight_shape) for i, each in enumerate(layers)}
    masks = make_method(method, **options).masks(layers, weights)
    return {name: int(mask[:, :, 0, 0].sum()) for name, mask in masks.items()}


@st.composite
def _nets(draw: Any) -> list[dict[str, int]]:
    """Fields of a few layers; neither filters nor channels need divide by anything."""
    layers = []
    for _ in range(draw(st.integers(1, 3))):
        groups = draw(st.integers(1, 2))
        layers.append({"filters": groups * draw(st.integers(1, 20)), "channels": draw(st.integers(1, 24)),
                       "groups": groups})  # fmt: skip
    return layers


def slack(layers: list[ConvLayer], block: int, whole_blocks: int = 2) -> int:
    """Channels of a block or two in every filter."""
    return sum(layer.filters for layer in layers) * block * whole_blocks


@settings(max_examples=60, deadline=None)
@given(net=_nets(), ratio=RATIOS, group=SIZES, block=SIZES, cluster=st.booleans())
def test_uniform_budgets_of_blocks(
    new_layer: NewLayer, net: list[dict[str, int]], ratio: float, group: int, block: int, cluster: bool
) -> None:
    """Less than one block of every filter where B divides its channels, than two elsewhere; G changes nothing."""
    layers = [new_layer(name=f"{i}", **fields) for i, fields in enumerate(net)]
    single = kept_kernels("vskp", layers, ratio=ratio, allocation="uniform")
    blocks = kept_kernels("vskp", layers, ratio=ratio, allocation="uniform", filter_group=group, channel_block=block,
                          cluster=cluster)  # fmt: skip
    for layer in layers:
        off = abs(blocks[layer.name] - single[layer.name])
        assert off < slack([layer], block, 2 if layer.channels % block else 1), (layer, single, blocks)
        assert off == 0 or block > 1


@settings(max_examples=100, deadline=None)
@given(net=_nets(), ratio=RATIOS, group=SIZES, block=SIZES, cluster=st.booleans())
@pytest.mark.parametrize("options", [{"method": "vskp"}, {"method": "pptkp"}, {"method": "pptkp", "equalise": True}])
def test_global_budgets_of_blocks(
    new_layer: NewLayer, options: Any, net: list[dict[str, int]], ratio: float, group: int, block: int, cluster: bool
) -> None:
    """Over the net: less than two blocks and a kernel of every filter, and the one block at the threshold."""
    layers = [new_layer(name=f"{i}", **fields) for i, fields in enumerate(net)]
    single = sum(kept_kernels(layers=layers, ratio=ratio, **options).values())
    blocks = sum(kept_kernels(layers=layers, ratio=ratio, filter_group=group, channel_block=block, cluster=cluster,
                              **options).values())  # fmt: skip
    assert abs(blocks - single) <= slack(layers, block) + slack(layers, 1, 1) + group * block + 1


@settings(max_examples=25, deadline=None)
@given(net=_nets(), ratio=RATIOS, group=SIZES, block=SIZES, allocation=st.sampled_from(["global", "uniform"]))
def test_budgets_of_elements_are_the_same(
    new_layer: NewLayer, net: list[dict[str, int]], ratio: float, group: int, block: int, allocation: str
) -> None:
    """KEP's n is of a layer's elements: what planes share does not change it."""
    layers = [new_layer(name=f"{i}", **fields) for i, fields in enumerate(net)]
    weights = {layer.name: np.random.default_rng(0).standard_normal(layer.weight_shape) for layer in layers}
    shared = {"filter_group": group, "channel_block": block}
    one, other = (make_method("kep", ratio=ratio, allocation=allocation, **more) for more in ({}, shared))
    single, blocks = one.masks(layers, weights), other.masks(layers, weights)
    for layer in layers:
        counts = {int(plane.sum()) for masks in (single, blocks) for row in masks[layer.name] for plane in row}
        assert len(counts) == 1


def test_filters_that_are_left_over_do_not_move_the_budget(new_layer: NewLayer) -> None:
    """Groups of four and one: the blocks of the lone filter are small, and count as what they are."""
    layer = new_layer(filters=5, channels=40)
    weight = np.ones(layer.weight_shape)
    weight[4] = np.linspace(0.1, 0.2, 40)[:, None, None]  # a fifth of the kernels, all below the others
    for options in ({"method": "vskp"}, {"method": "pptkp", "equalise": True}):
        made = make_method(str(options.pop("method")), ratio=0.19, filter_group=4, **options)
        kept = made.masks([layer], {layer.name: weight})[layer.name][:, :, 0, 0].sum(axis=1)
        assert set(kept.tolist()) <= {32, 33}

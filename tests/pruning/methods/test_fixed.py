from __future__ import annotations

import numpy as np

from trtkp.index.conv_layer import ConvLayer
from trtkp.pruning.methods.fixed import Dense, FromZeros
from trtkp.pruning.one_shot import prune_one_shot


def layer(name: str, kernel: tuple[int, int] = (3, 3), *, stem: bool = False) -> ConvLayer:
    return ConvLayer(name, name, 4, 2, kernel, (1, 1), (1, 1, 1, 1), (1, 1), 1, (8, 8), (8, 8), False, stem)


def test_from_zeros_takes_the_zeros_that_are_there_stem_and_1x1_included() -> None:
    rng = np.random.default_rng(0)
    layers = [layer("stem", stem=True), layer("point", (1, 1)), layer("full"), layer("huge", (9, 9))]
    weights = {each.name: rng.standard_normal(each.weight_shape) for each in layers}
    weights["stem"][:, :, 0] = 0
    weights["point"][1] = 0
    weights["huge"][0] = 0
    pruning = prune_one_shot(FromZeros(), layers, weights)
    assert set(pruning.masks) == {"stem", "point"}
    assert np.array_equal(pruning.masks["stem"], weights["stem"] != 0)
    assert "64 taps" in pruning.left_dense["huge"]


def test_none_prunes_nothing() -> None:
    layers = [layer("a"), layer("b")]
    pruning = prune_one_shot(Dense(), layers, {each.name: np.zeros(each.weight_shape) for each in layers})
    assert pruning.masks == {}
    assert set(pruning.left_dense) == {"a", "b"}

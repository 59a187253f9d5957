"""Which layers a method prunes: scope, patterns, and reasons for the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from trtkp.errors import InputError
from trtkp.index.conv_layer import ConvLayer
from trtkp.pruning.method import Method
from trtkp.pruning.methods.fixed import Dense, FromZeros
from trtkp.pruning.methods.kep import KEP
from trtkp.pruning.methods.soks import SOKS
from trtkp.pruning.one_shot import prune_one_shot, select_layers

NewLayer = Callable[..., ConvLayer]


@pytest.fixture
def layers(new_layer: NewLayer) -> list[ConvLayer]:
    return [
        new_layer(name="stem.weight", stem=True),
        new_layer(name="block.0.conv.weight"),
        new_layer(name="block.0.point.weight", kernel=(1, 1)),
        new_layer(name="block.1.depth.weight", groups=4, channels=1),
        new_layer(name="block.1.conv.weight"),
        new_layer(name="onnx::Conv_7"),
    ]


def names(layers: list[ConvLayer]) -> list[str]:
    return [layer.name for layer in layers]


def test_default_scope_and_reasons(layers: list[ConvLayer]) -> None:
    chosen, reasons = select_layers(KEP(), layers)
    assert names(chosen) == ["block.0.conv.weight", "block.1.conv.weight", "onnx::Conv_7"]
    assert reasons == {
        "stem.weight": "stem",
        "block.0.point.weight": "1x1 kernel: a plane of one element has nothing to drop",
        "block.1.depth.weight": "depthwise",
    }


def test_include_replaces_the_default_scope(layers: list[ConvLayer]) -> None:
    chosen, reasons = select_layers(KEP(), layers, include=["stem", "block.1.*"])
    assert names(chosen) == ["stem.weight", "block.1.depth.weight", "block.1.conv.weight"]
    assert reasons["block.0.conv.weight"] == "not among the chosen layers"
    chosen, reasons = select_layers(KEP(), layers, include=["*"])
    assert len(chosen) == 5
    assert set(reasons) == {"block.0.point.weight"}
    assert "1x1" in reasons["block.0.point.weight"]


def test_skip_wins(layers: list[ConvLayer]) -> None:
    chosen, reasons = select_layers(KEP(), layers, include=["*"], skip=["block.*.conv", "stem.weight"])
    assert names(chosen) == ["block.1.depth.weight", "onnx::Conv_7"]
    assert reasons["stem.weight"] == reasons["block.1.conv.weight"] == "skipped by the user"
    assert names(select_layers(KEP(), layers, skip=["block.0.conv"])[0]) == ["block.1.conv.weight", "onnx::Conv_7"]
    # what the method could not prune anyway is not worth an error when it is skipped as well
    named = ["block.0.point", "stem"]
    assert names(select_layers(KEP(), layers, include=named, skip=["block.0.point"])[0]) == ["stem.weight"]


def test_patterns_match_with_and_without_weight(layers: list[ConvLayer]) -> None:
    for pattern in ("block.0.conv", "block.0.conv.weight", "block.[0].c?nv", "*0.conv.w*"):
        assert names(select_layers(KEP(), layers, include=[pattern])[0]) == ["block.0.conv.weight"]
    for pattern in ("onnx::Conv_7", "onnx*"):
        assert names(select_layers(KEP(), layers, include=[pattern])[0]) == ["onnx::Conv_7"]
    with pytest.raises(InputError, match="no convolution is called BLOCK"):
        select_layers(KEP(), layers, include=["BLOCK.0.conv"])


@pytest.mark.parametrize("option", ["include", "skip"])
def test_unknown_pattern(layers: list[ConvLayer], option: str) -> None:
    with pytest.raises(InputError, match=r"called head\.\*; the model has stem.weight, .*, \.\.\. \(6 conv"):
        select_layers(KEP(), layers, **{option: ["head.*"]})
    with pytest.raises(InputError, match="the model has none"):
        select_layers(KEP(), [], **{option: ["*"]})


def test_exact_name_of_a_layer_that_cannot_be_pruned(layers: list[ConvLayer]) -> None:
    for name in ("block.0.point", "block.0.point.weight"):
        with pytest.raises(InputError, match="kep cannot prune it: 1x1 kernel") as error:
            select_layers(KEP(), layers, include=["stem", name])
        assert error.value.layer == "block.0.point.weight"


def test_weight_of_two_nodes(new_layer: NewLayer) -> None:
    twice = [new_layer(node="first", stem=True), new_layer(node="second"), new_layer(name="other")]
    for layers in (twice, twice[::-1]):
        chosen, reasons = select_layers(KEP(), layers)
        assert {layer.node for layer in chosen} == {"second", "conv"}
        assert reasons == {}
    weights = {"conv.weight": np.ones((4, 3, 3, 3)), "other": np.ones((4, 3, 3, 3))}
    both = [new_layer(node="first"), new_layer(node="second")]
    seen: list[list[str]] = []

    class Spy(KEP):
        def masks(self, layers: Any, weights: Any) -> Any:
            seen.append(names(layers))
            return super().masks(layers, weights)

    pruning = prune_one_shot(Spy(n=2), both, weights)
    assert seen == [["conv.weight"]]
    assert pruning.masks["conv.weight"].sum() == 4 * 3 * 2


def test_prune_one_shot(layers: list[ConvLayer]) -> None:
    weights = {layer.name: np.ones(layer.weight_shape) for layer in layers}
    pruning = prune_one_shot(KEP(n=1), layers, weights, skip=["onnx*"])
    assert set(pruning.masks) == {"block.0.conv.weight", "block.1.conv.weight"}
    assert pruning.left_dense["onnx::Conv_7"] == "skipped by the user"
    assert set(pruning.masks) | set(pruning.left_dense) == set(weights)
    nothing = prune_one_shot(KEP(), layers, weights, skip=["*"])
    assert nothing.masks == {}
    assert len(nothing.left_dense) == len(layers)


def test_mask_that_removes_nothing_is_none(new_layer: NewLayer) -> None:
    whole = new_layer(name="whole", kernel=(1, 2))
    pruning = prune_one_shot(
        KEP(n=2), [new_layer(), whole], {"conv.weight": np.ones((4, 3, 3, 3)), "whole": np.ones((4, 3, 1, 2))}
    )
    assert set(pruning.masks) == {"conv.weight"}
    assert pruning.left_dense == {"whole": "the method removes nothing from it"}


def test_dense(layers: list[ConvLayer]) -> None:
    assert isinstance(Dense(), Method)
    pruning = prune_one_shot(Dense(), layers, {})
    assert pruning.masks == {}
    assert set(pruning.left_dense.values()) == {"method none"}
    assert Dense().settings() == {}
    assert Dense().masks(layers, {}) == {}


def test_from_zeros(layers: list[ConvLayer], new_layer: NewLayer) -> None:
    assert isinstance(FromZeros(), Method)
    weights = {layer.name: np.ones(layer.weight_shape, np.float32) for layer in layers}
    weights["stem.weight"][1, 2, 0, 1] = 0
    weights["block.0.point.weight"][0] = -0.0
    weights["onnx::Conv_7"][0, 0, 0, 0] = 1e-30
    pruning = prune_one_shot(FromZeros(), layers, weights)
    assert set(pruning.masks) == {"stem.weight", "block.0.point.weight"}
    assert pruning.left_dense["onnx::Conv_7"] == "the method removes nothing from it"
    assert set(pruning.masks) | set(pruning.left_dense) == set(weights)
    assert np.argwhere(~pruning.masks["stem.weight"]).tolist() == [[1, 2, 0, 1]]
    assert "65 taps" not in str(FromZeros().inapplicable(new_layer(kernel=(8, 8))))
    assert "5x13 kernel" in str(FromZeros().inapplicable(new_layer(kernel=(5, 13))))
    assert FromZeros().settings() == {}


def test_a_layer_of_zeros_has_nothing_to_lose(new_layer: NewLayer) -> None:
    """A mask that leaves nothing is refused, unless there was nothing."""
    layer = new_layer()
    nothing = np.zeros(layer.weight_shape, np.float32)
    assert not prune_one_shot(FromZeros(), [layer], {layer.name: nothing}).masks[layer.name].any()
    layers = [layer, new_layer(name="other")]  # 17 of their 18 stripes go, of equal ones those of the first layer
    with pytest.raises(InputError, match=r"layer conv\.weight: soks would remove all filters of it; prune less"):
        prune_one_shot(
            SOKS(ratio=0.99, groups=1, remove_filters=True), layers, {each.name: nothing + 1 for each in layers}
        )

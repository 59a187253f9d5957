"""Prune without training: choose the layers that a method prunes, and make their masks from the weights as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import numpy.typing as npt

from trtkp.errors import InputError
from trtkp.index.conv_layer import ConvLayer
from trtkp.index.index_set import IndexSet, Masks, from_mask
from trtkp.pruning.method import Method
from trtkp.pruning.nm import in_expected_order, refined

__all__ = [
    "Pruning",
    "check_not_empty",
    "index_set",
    "list_weights",
    "prune_layers",
    "prune_one_shot",
    "select_layers",
]


@dataclass(frozen=True)
class Pruning:
    """The decision of a method.

    Attributes:
        masks: parameter name to mask, bool [F, C, R, S]; only layers that lose something.
        left_dense: for each other layer, the reason why it stays dense.
        lists: for layers with 2:4 inside their lists, the mask of the lists, bool [F, C, R, S].
        stored: the index sets that the masks came from, if they were made earlier.
    """

    masks: Masks
    left_dense: dict[str, str]
    lists: Masks = field(default_factory=dict)
    stored: Mapping[str, IndexSet] = field(default_factory=dict)

    def index_sets(self, groups: Mapping[str, int]) -> dict[str, IndexSet]:
        """The index set of every mask; ``groups`` maps a parameter name to its number of ONNX groups."""
        return {
            name: self.stored[name] if name in self.stored else index_set(mask, self.lists.get(name), groups[name])
            for name, mask in self.masks.items()
        }


def index_set(mask: npt.NDArray[np.bool_], lists: npt.NDArray[np.bool_] | None, groups: int) -> IndexSet:
    """The index set of a mask, bool [F, C, R, S].

    Args:
        mask: True where a weight is kept.
        lists: for a mask with 2:4 inside lists, the mask of the lists; None for any other mask.
        groups: number of ONNX groups.
    """
    return from_mask(mask, groups) if lists is None else from_mask(lists, groups).refined(mask)


def select_layers(
    method: Method, layers: Sequence[ConvLayer], include: Sequence[str] = (), skip: Sequence[str] = ()
) -> tuple[list[ConvLayer], dict[str, str]]:
    """Choose the layers to prune.

    ``include`` and ``skip`` are shell patterns on parameter names, with or without the trailing ``.weight``. ``skip``
    takes precedence over ``include``, and ``include`` over the method's default scope. A layer that the method cannot
    prune is an error if the user gave its full name; a pattern with wildcards may match it without harm.

    Returns:
        The layers to prune, and for every other layer the reason why it stays dense.

    Raises:
        InputError: a pattern matches no layer, or the method cannot prune a layer that was named in full.
    """
    for pattern in (*include, *skip):
        if not any(_matches(layer, pattern) for layer in layers):
            names = [layer.name for layer in layers]
            known = ", ".join(names[:4]) + (f", ... ({len(names)} convolutions)" if len(names) > 4 else "")
            raise InputError(f"no convolution is called {pattern}", remedy=f"the model has {known or 'none'}")
    chosen, reasons = [], {}
    for layer in layers:
        impossible = method.inapplicable(layer)
        named = [pattern for pattern in include if _matches(layer, pattern)]
        if any(_matches(layer, pattern) for pattern in skip):
            reason: str | None = "skipped by the user"
        elif impossible and any(not set("*?[") & set(pattern) for pattern in named):
            raise InputError(f"{method.name} cannot prune it: {impossible}", layer=layer.name)
        elif include:
            reason = impossible if named else "not among the chosen layers"
        else:
            reason = impossible or method.out_of_scope(layer)
        if reason is None:
            chosen.append(layer)
        else:
            reasons[layer.name] = reason
    for layer in chosen:  # a weight that two nodes share is pruned if either node is in scope
        reasons.pop(layer.name, None)
    return chosen, reasons


def list_weights(method: Method, weights: Mapping[str, npt.NDArray[Any]]) -> Mapping[str, npt.NDArray[Any]]:
    """The weights by which a method chooses its lists.

    For a method with `expects_two_four` they are scaled, so that kernels rank by what 2:4 is expected to keep of them
    (`trtkp.pruning.nm.in_expected_order`). Other methods get the weights as they are.
    """
    if not method.expects_two_four:
        return weights
    return {name: in_expected_order(weight) for name, weight in weights.items()}


def check_not_empty(method: Method, masks: Masks, weights: Mapping[str, npt.NDArray[Any]]) -> None:
    """Check that every layer whose weight was not all zero keeps something.

    Without this a layer could output a constant, and nothing behind it would depend on the input any more.

    Raises:
        InputError: a mask removes all of a layer; the error names the layer.
    """
    for name, mask in masks.items():
        if not mask.any() and weights[name].any():
            raise InputError(
                f"{method.name} would remove all filters of it",
                layer=name,
                remedy="prune less, or leave the layer out with --skip",
            )


def prune_one_shot(
    method: Method,
    layers: Sequence[ConvLayer],
    weights: Mapping[str, npt.NDArray[Any]],
    include: Sequence[str] = (),
    skip: Sequence[str] = (),
) -> Pruning:
    """Choose layers with `select_layers`, and make their masks from the weights as they are.

    Args:
        method: the method.
        layers: all convolutions of the net.
        weights: parameter name to weight, [F, C, R, S].
        include: patterns of the layers to prune, instead of the method's default scope.
        skip: patterns of layers to leave dense.

    Raises:
        InputError: see `select_layers` and `prune_layers`.

    Example:
        >>> from trtkp.pruning.methods.kep import KEP
        >>> conv = ConvLayer("conv.weight", "conv", filters=2, channels=2, kernel=(3, 3), strides=(1, 1),
        ...                  pads=(1, 1, 1, 1), dilations=(1, 1), groups=1, input_size=(8, 8), output_size=(8, 8),
        ...                  bias=False, stem=False)
        >>> stem = replace(conv, name="stem.weight", stem=True)
        >>> weights = dict.fromkeys(("stem.weight", "conv.weight"), np.arange(36.0).reshape(2, 2, 3, 3))
        >>> pruning = prune_one_shot(KEP(n=2), [stem, conv], weights)
        >>> {name: int(mask.sum()) for name, mask in pruning.masks.items()}, pruning.left_dense
        ({'conv.weight': 8}, {'stem.weight': 'stem'})
    """
    chosen, reasons = select_layers(method, layers, include, skip)
    pruning = prune_layers(method, chosen, weights)
    return replace(pruning, left_dense=reasons | pruning.left_dense)


def prune_layers(method: Method, layers: Sequence[ConvLayer], weights: Mapping[str, npt.NDArray[Any]]) -> Pruning:
    """Make the masks of the given layers from the weights as they are.

    If the method's setting ``nm`` is "2:4", its masks are lists, and each filter keeps two of every four weights inside
    them.

    Raises:
        InputError: the settings do not fit a layer, or see `check_not_empty`.
    """
    unique = list({layer.name: layer for layer in layers}.values())
    own = {layer.name: weights[layer.name] for layer in unique}
    masks = method.masks(unique, list_weights(method, own)) if unique else {}
    lists: Masks = {}
    if method.nm is not None:
        lists, masks = masks, refined(masks, weights, unique)
    check_not_empty(method, masks, weights)
    masks = {name: mask for name, mask in masks.items() if not mask.all()}
    reasons = {layer.name: "the method removes nothing from it" for layer in unique if layer.name not in masks}
    return Pruning(masks, reasons, {name: lists[name] for name in masks if name in lists}, method.stored())


def _matches(layer: ConvLayer, pattern: str) -> bool:
    return fnmatchcase(layer.name, pattern) or fnmatchcase(layer.name.removesuffix(".weight"), pattern)

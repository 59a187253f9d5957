"""Pruning without training: the layers that a method prunes, and their masks from the weights as they are."""

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
    "check_left",
    "index_set",
    "list_weights",
    "prune_layers",
    "prune_one_shot",
    "select_layers",
]


@dataclass(frozen=True)
class Pruning:
    """What a method decided: a mask per pruned parameter, and why the other layers were left dense.

    ``lists`` has, for layers with 2:4 inside their lists, the mask of the lists; ``stored`` the index sets that the
    masks came from, where they were made before.
    """

    masks: Masks
    left_dense: dict[str, str]
    lists: Masks = field(default_factory=dict)
    stored: Mapping[str, IndexSet] = field(default_factory=dict)

    def index_sets(self, groups: Mapping[str, int]) -> dict[str, IndexSet]:
        """The index set of every mask; ``groups`` maps a parameter to its ONNX groups."""
        return {
            name: self.stored[name] if name in self.stored else index_set(mask, self.lists.get(name), groups[name])
            for name, mask in self.masks.items()
        }


def index_set(mask: npt.NDArray[np.bool_], lists: npt.NDArray[np.bool_] | None, groups: int) -> IndexSet:
    """The index set of a mask, with 2:4 inside the given lists, both [F, C, R, S]."""
    return from_mask(mask, groups) if lists is None else from_mask(lists, groups).refined(mask)


def select_layers(
    method: Method, layers: Sequence[ConvLayer], include: Sequence[str] = (), skip: Sequence[str] = ()
) -> tuple[list[ConvLayer], dict[str, str]]:
    """The layers to prune, and for every other layer the reason why not.

    Without ``include`` the method's default scope decides. ``include`` and ``skip`` are shell patterns on parameter
    names, with or without the trailing ``.weight``; ``include`` replaces the default scope, ``skip`` wins over both.

    Raises:
        InputError: a pattern that names no layer, or a layer named outright that the method cannot prune.
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
    for layer in chosen:  # a weight that serves two nodes is pruned if either is in scope
        reasons.pop(layer.name, None)
    return chosen, reasons


def list_weights(method: Method, weights: Mapping[str, npt.NDArray[Any]]) -> Mapping[str, npt.NDArray[Any]]:
    """The weights that a method chooses its lists by.

    A method that `expects_two_four` ranks kernels by what 2:4 inside the lists is expected to keep of them.
    """
    if not method.expects_two_four:
        return weights
    return {name: in_expected_order(weight) for name, weight in weights.items()}


def check_left(method: Method, masks: Masks, weights: Mapping[str, npt.NDArray[Any]]) -> None:
    """Refuse masks that leave nothing of a layer that had something: no net computes anything behind it.

    Raises:
        InputError: the layer, and what to do.
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
    """Masks from the weights as they are, with no training, of the layers that `select_layers` chooses.

    Raises:
        InputError: see there and `prune_layers`.
    """
    chosen, reasons = select_layers(method, layers, include, skip)
    pruning = prune_layers(method, chosen, weights)
    return replace(pruning, left_dense=reasons | pruning.left_dense)


def prune_layers(method: Method, layers: Sequence[ConvLayer], weights: Mapping[str, npt.NDArray[Any]]) -> Pruning:
    """Masks of the given layers from the weights as they are.

    A method with a setting ``nm`` of "2:4" gives lists; each filter keeps two of every four weights inside them.

    Raises:
        InputError: see the method and `check_left`.
    """
    unique = list({layer.name: layer for layer in layers}.values())
    own = {layer.name: weights[layer.name] for layer in unique}
    masks = method.masks(unique, list_weights(method, own)) if unique else {}
    lists: Masks = {}
    if method.nm is not None:
        lists, masks = masks, refined(masks, weights, unique)
    check_left(method, masks, weights)
    masks = {name: mask for name, mask in masks.items() if not mask.all()}
    reasons = {layer.name: "the method removes nothing from it" for layer in unique if layer.name not in masks}
    return Pruning(masks, reasons, {name: lists[name] for name in masks if name in lists}, method.stored())


def _matches(layer: ConvLayer, pattern: str) -> bool:
    return fnmatchcase(layer.name, pattern) or fnmatchcase(layer.name.removesuffix(".weight"), pattern)

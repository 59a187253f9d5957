"""What PPT-KP's pruning points would leave of a net, for the user to choose from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any

import numpy.typing as npt

from trtkp.prune.accounting import account
from trtkp.prune.allocation import Allocated
from trtkp.prune.conv_layer import ConvLayer
from trtkp.prune.method import Method, Pruning, prune_layers
from trtkp.prune.pptkp import PPTKP
from trtkp.pruning.subject import Subject

__all__ = ["points_report"]


def points_report(
    subject: Subject, method: Method, weights: Mapping[str, npt.NDArray[Any]], pruning: Pruning
) -> dict[str, Any]:
    """``points``: every pruning point of the norms, and what the whole net would keep there; empty of other methods.

    Layers with settings of their own (`prune.allocation`) have points of their own, the other layers then as pruned.
    A record has the number of the ``point``, the ``layers`` whose it is, and by their kernel sizes in ``norms`` the
    threshold, None where those norms have fewer points. Then ``--point`` refuses the number, and these are None:
    ``kernels`` that the layers keep and those they have, ``params`` and ``macs`` of the whole net.

    Args:
        subject: the model.
        method: as it was pruned.
        weights: that masks are chosen by.
        pruning: its masks.
    """
    parts = method.parts(subject.layers) if isinstance(method, Allocated) else [(method, subject.layers)]
    lists = [_points(subject, own, layers, weights, pruning) for own, layers in parts if isinstance(own, PPTKP)]
    return {"points": list(chain.from_iterable(lists))} if lists else {}


def _points(
    subject: Subject,
    method: PPTKP,
    layers: Sequence[ConvLayer],
    weights: Mapping[str, npt.NDArray[Any]],
    pruning: Pruning,
) -> list[dict[str, Any]]:
    """Of layers whose norms are compared."""
    names = [layer.name for layer in layers]
    points = method.points(layers, weights)
    records = []
    for i in range(max(map(len, points.values()), default=0)):
        norms = {sizes: asdict(found[i]) if i < len(found) else None for sizes, found in points.items()}
        left: dict[str, Any] = {"kernels": None, "params": None, "macs": None}
        if None not in norms.values():
            left = _left(subject, layers, prune_layers(method.at(i + 1), layers, weights), pruning)
        records.append({"point": i + 1, "layers": names, "norms": norms, **left})
    return records


def _left(subject: Subject, layers: Sequence[ConvLayer], at: Pruning, others: Pruning) -> dict[str, Any]:
    """Kernels of the layers, and parameters and MACs of the whole net, with the other layers as they are pruned."""
    names = {layer.name for layer in layers}
    masks, lists = (
        {name: mask for name, mask in old.items() if name not in names} | new
        for old, new in ((others.masks, at.masks), (others.lists, at.lists))
    )
    table = subject.table
    index_sets = Pruning(masks, {}, lists).index_sets({layer.name: layer.groups for layer in table.layers})
    accounting = account(table.layers, table.params, table.macs, index_sets)
    removed = sum(int((~mask.any(axis=(2, 3))).sum()) for mask in (at.masks | at.lists).values())
    kernels = sum(layer.filters * layer.channels for layer in layers)
    return {
        "kernels": [kernels - removed, kernels],
        "params": accounting.params.retained,
        "macs": accounting.macs.retained,
    }

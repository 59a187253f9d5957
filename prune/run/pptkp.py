"""What PPT-KP's pruning points would leave of a net, for the user to choose from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy.typing as npt

from trtkp.pruning.method import Method, Pruning, prune_layers
from trtkp.pruning.methods.pptkp import PPTKP
from trtkp.pruning.run.subject import Subject

__all__ = ["points_report"]


def points_report(subject: Subject, method: Method, weights: Mapping[str, npt.NDArray[Any]]) -> dict[str, Any]:
    """``points``: every pruning point of the norms, and what the whole net would keep there; empty of other methods.

    A record has the number of the ``point``, and by the layers' kernel sizes in ``norms`` the threshold, None where
    those norms have fewer points. Then ``--point`` refuses the number, and these are None: ``kernels`` that the layers
    keep and those they have, ``params`` and ``macs`` of the whole net.

    Args:
        subject: the model.
        method: as it was pruned. With settings by layers nothing is listed: there each layer has a ratio of its own.
        weights: that masks are chosen by.
    """
    if not isinstance(method, PPTKP):
        return {}
    points = method.points(subject.layers, weights)
    records = []
    for i in range(max(map(len, points.values()), default=0)):
        norms = {sizes: asdict(found[i]) if i < len(found) else None for sizes, found in points.items()}
        left: dict[str, Any] = {"kernels": None, "params": None, "macs": None}
        if None not in norms.values():
            left = _left(subject, prune_layers(method.at(i + 1), subject.layers, weights))
        records.append({"point": i + 1, "norms": norms, **left})
    return {"points": records}


def _left(subject: Subject, pruning: Pruning) -> dict[str, Any]:
    """Kernels of the layers, and parameters and MACs of the whole net."""
    table = subject.table
    removed = {name: int((~mask).sum()) for name, mask in pruning.masks.items()}
    removed_macs = sum(layer.macs_per_weight * removed.get(layer.name, 0) for layer in table.layers)
    removed_kernels = sum(int((~mask.any(axis=(2, 3))).sum()) for mask in (pruning.masks | pruning.lists).values())
    kernels = sum(layer.filters * layer.channels for layer in subject.layers)
    return {
        "kernels": [kernels - removed_kernels, kernels],
        "params": table.params - sum(removed.values()),
        "macs": table.macs - removed_macs,
    }

"""The nets whose sizes the papers give, as pruning sees them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from examples.nets import export
from trtkp.graph.layers import LayerTable
from trtkp.index.accounting import Accounting, account
from trtkp.model import SourceModel, load_model
from trtkp.model.layers import named_graph, read_layers
from trtkp.pruning.method import Method
from trtkp.pruning.one_shot import Pruning, prune_one_shot
from trtkp.shapes import Profile, make_profile


class KnownNet:
    """A net that was saved and loaded again, with its convolutions and their weights."""

    source: SourceModel
    profile: Profile
    table: LayerTable
    weights: dict[str, np.ndarray[Any, Any]]

    def __init__(self, model: nn.Module, shape: tuple[int, int, int], folder: Path) -> None:
        torch.export.save(export(model.eval(), shape), folder / "net.pt2")
        self.source = load_model(folder / "net.pt2")
        self.profile = make_profile(self.source.inputs, {}, {}, {})
        self.table, self.weights = read_layers(named_graph(self.source), self.source, self.profile)

    def pruned(self, method: Method, include: tuple[str, ...] = ()) -> tuple[Pruning, Accounting]:
        """What a method does to it, and what that leaves."""
        pruning = prune_one_shot(method, self.table.layers, self.weights, include)
        sets = pruning.index_sets({layer.name: layer.groups for layer in self.table.layers})
        return pruning, account(self.table.layers, self.table.params, self.table.macs, sets)

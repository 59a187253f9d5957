"""`SubjectNet`, what a method can ask about the net around its layers (`trtkp.pruning.method.Net`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from trtkp.graph.chains import next_convolutions
from trtkp.model.layers import matrix_names
from trtkp.pruning.method import Masks
from trtkp.pruning.run.subject import Subject

if TYPE_CHECKING:
    import torch

__all__ = ["SubjectNet"]


@dataclass(frozen=True, eq=False)
class SubjectNet:
    """The net of a subject.

    Attributes:
        subject: the model and its layers.
        module: the module that is being trained; None without training.
    """

    subject: Subject
    module: torch.nn.Module | None = None

    def matrices(self) -> dict[str, npt.NDArray[Any]]:
        """See `Net.matrices`. For a model from PyTorch these are parameters only: buffers are not trained."""
        source = self.subject.source
        weights = source.parameters()
        names = [name for name in matrix_names(self.subject.graph) if name in weights]
        if source.format != "onnx":
            parameters = dict((self.module or source.module()).named_parameters(remove_duplicate=False))
            names = [name for name in names if name in parameters]
        return {name: weights[name] for name in names}

    def next_convolutions(self) -> Mapping[str, str]:
        """See `Net.next_convolutions`."""
        return next_convolutions(self.subject.graph)

    def retained(self, masks: Masks) -> tuple[int, int]:
        """See `Net.retained`."""
        table = self.subject.table
        removed = {name: int((~mask).sum()) for name, mask in masks.items()}
        removed_macs = sum(layer.macs_per_weight * removed.get(layer.name, 0) for layer in table.layers)
        return table.params - sum(removed.values()), table.macs - removed_macs

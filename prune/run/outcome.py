"""`Outcome`, the results of pruning: masks, the net that they belong to, and figures for the manifest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from trtkp.errors import InputError
from trtkp.index.index_set import IndexSet
from trtkp.pruning.method import Masks, Method
from trtkp.pruning.one_shot import check_not_empty, index_set, prune_layers
from trtkp.pruning.regulariser import Deployed
from trtkp.pruning.run.net import SubjectNet
from trtkp.pruning.run.subject import Subject

if TYPE_CHECKING:
    import torch

__all__ = ["Outcome"]


@dataclass(eq=False)
class Outcome:
    """The results of pruning. An outcome starts empty, and the steps of `trtkp.pruning.run` fill it.

    Attributes:
        subject: the model that is pruned.
        method: the method that prunes it.
        module: the trained or converted net; None where the source's weights are masked as they are.
        masks: masks of the layers that lose something, bool [F, C, R, S], by parameter name.
        lists: for masks with 2:4 inside lists, the masks of the lists, bool [F, C, R, S].
        matrices: masks of fully connected layers, bool [outputs, inputs].
        deployed: for a converted net, what the manifest says about it; see `deploy`.
        left_dense: for each layer that is not pruned, the reason.
        accuracy: measured shares of right decisions: ``dense``, ``one-shot`` and ``pruned``.
        report: the method's own figures; values that JSON can hold.
        seconds: seconds that each stage of training took.
        warnings: what the user should know, one line each.
    """

    subject: Subject
    method: Method
    module: torch.nn.Module | None = None
    masks: Masks = field(default_factory=dict)
    lists: Masks = field(default_factory=dict)
    matrices: Masks = field(default_factory=dict)
    deployed: Deployed | None = None
    left_dense: dict[str, str] = field(init=False)
    accuracy: dict[str, float] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.left_dense = dict(self.subject.left_dense)
        self.warnings = list(self.subject.source.warnings)

    @property
    def all_masks(self) -> Masks:
        """Masks of convolutions and of fully connected layers."""
        return self.masks | self.matrices

    @property
    def index_sets(self) -> dict[str, IndexSet]:
        """The index set of every pruned convolution."""
        groups = {layer.name: layer.groups for layer in self.subject.layers}
        return {name: index_set(mask, self.lists.get(name), groups[name]) for name, mask in sorted(self.masks.items())}

    def prune_one_shot(self, weights: Mapping[str, npt.NDArray[Any]]) -> None:
        """Let the method make masks from the given weights, and keep them."""
        with self._named():
            pruning = prune_layers(self.method, self.subject.layers, weights)
        self.set_masks(pruning.masks, pruning.lists)
        self.add_report(weights)

    def add_report(self, weights: Mapping[str, npt.NDArray[Any]]) -> None:
        """Keep the method's figures about the weights that the masks came from."""
        self.report |= self.method.report(self.subject.layers, weights, self.net)

    @property
    def net(self) -> SubjectNet:
        """What the method can ask about the net around its layers."""
        return SubjectNet(self.subject, self.module)

    def set_masks(self, masks: Masks, lists: Masks) -> None:
        """Keep the masks that remove something.

        Args:
            masks: parameter name to mask.
            lists: for masks with 2:4 inside lists, the masks of the lists.

        Raises:
            InputError: a mask leaves nothing of its layer.
        """
        converts = self.method.converts
        if converts and not self.method.regularises:
            return  # a smaller dense net has no masks
        with self._named():
            check_not_empty(self.method, masks, self.subject.weights)
        self.masks = {name: mask for name, mask in masks.items() if not mask.all()}
        self.lists = {name: lists[name] for name in self.masks if name in lists}
        self.matrices = self.method.matrix_masks(self.net)
        for layer in self.subject.layers:
            if layer.name not in self.masks and not converts:  # a converted layer is not dense, with masks or without
                self.left_dense[layer.name] = "the method removes nothing from it"
        if not self.masks:
            self.warnings.append(f"method {self.method.name} pruned no layer")

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Add the subject's file to an error that names a layer only."""
        try:
            yield
        except InputError as error:
            unnamed = error.file is None and error.layer is not None
            raise error.in_file(self.subject.path) if unnamed else error from None

    def deploy(self) -> None:
        """Turn a converted net, in place, into the form that is exported, and take over its masks and figures."""
        from trtkp.pruning.train.modes import set_training

        if not self.method.converts:
            return
        assert self.module is not None
        set_training(self.module.cpu(), False)
        self.deployed = self.method.deployed(self.module, self.subject.layers, self.subject.table.macs)
        self.masks = self.deployed.masks
        self.report |= self.deployed.report

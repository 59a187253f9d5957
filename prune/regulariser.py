"""What a method does while a net trains towards its masks: hooks that the trainer calls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from trtkp.errors import InputError
from trtkp.index.conv_layer import ConvLayer
from trtkp.index.index_set import Masks

if TYPE_CHECKING:
    import torch

__all__ = [
    "Deployed",
    "Regulariser",
    "Together",
    "layer_parameters",
    "layer_weights",
]


class Regulariser(ABC):
    """Base of the regularisers; a hook does nothing unless a method says what.

    Every iteration the trainer adds `loss` to its own, calls `after_backward` once gradients are there (unscaled, and
    averaged over processes), and `after_step` once the optimiser has stepped. `state` and
    `restore` are for checkpoints.
    """

    @property
    def finished(self) -> bool:
        """Whether there is nothing more to push; asked after every epoch."""
        return False

    def loss(self) -> torch.Tensor | None:
        """A term of the loss, or None."""
        return None

    def after_backward(self) -> None:  # noqa: B027 - a hook may do nothing
        """Add to the gradients."""

    def after_step(self, lr: float) -> None:  # noqa: B027 - a hook may do nothing
        """Change weights after a step of learning rate ``lr``."""

    def after_epoch(self, epoch: int) -> None:  # noqa: B027 - a hook may do nothing
        """Look at the weights after epoch ``epoch``, counted from 1."""

    @abstractmethod
    def masks(self) -> Masks:
        """Masks that the weights as they are now lead to."""

    def finish(self) -> None:  # noqa: B027 - a hook may do nothing
        """Take off what was put on the module."""

    def state(self) -> dict[str, torch.Tensor]:
        """What the module's own state does not hold."""
        return {}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:  # noqa: B027 - a hook may do nothing
        """Go on from `state`."""

    def report(self) -> dict[str, Any]:
        """Figures for the log and for the record of the pruning, as JSON has them."""
        return {}


class Together(Regulariser):
    """Several regularisers of layers that are pruned with settings of their own."""

    def __init__(self, parts: Sequence[Regulariser]) -> None:
        self._parts = list(parts)

    @property
    def finished(self) -> bool:
        """Whether all have."""
        return all(part.finished for part in self._parts)

    def loss(self) -> torch.Tensor | None:
        """The sum of their terms."""
        terms = [term for part in self._parts if (term := part.loss()) is not None]
        return sum(terms[1:], terms[0]) if terms else None

    def after_backward(self) -> None:
        """As each does."""
        for part in self._parts:
            part.after_backward()

    def after_step(self, lr: float) -> None:
        """As each does."""
        for part in self._parts:
            part.after_step(lr)

    def after_epoch(self, epoch: int) -> None:
        """As each does."""
        for part in self._parts:
            part.after_epoch(epoch)

    def masks(self) -> Masks:
        """Those of all layers."""
        return {name: mask for part in self._parts for name, mask in part.masks().items()}

    def finish(self) -> None:
        """As each does."""
        for part in self._parts:
            part.finish()

    def state(self) -> dict[str, torch.Tensor]:
        """Under the number of each."""
        return {f"{i}.{name}": value for i, part in enumerate(self._parts) for name, value in part.state().items()}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from `state`."""
        for i, part in enumerate(self._parts):
            prefix = f"{i}."
            part.restore({key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)})

    def report(self) -> dict[str, Any]:
        """One after the other, in the order of the first layer of each."""
        return {"parts": [part.report() for part in self._parts]}


@dataclass(frozen=True)
class Deployed:
    """What is to be said of a net that a method made.

    Attributes:
        masks: of the weights that it came from, what its lists read.
        params: of the layers that took their place, by the same names.
        report: figures, as JSON has them.
    """

    masks: Masks
    params: dict[str, int]
    report: dict[str, Any]


def layer_parameters(model: torch.nn.Module, layers: Sequence[ConvLayer]) -> dict[str, torch.nn.Parameter]:
    """The weight of every layer.

    Raises:
        InputError: no parameter of that name, a buffer, or another shape.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))  # tied ones under each of their names
    buffers = dict(model.named_buffers())
    found = {}
    for layer in layers:
        parameter = parameters.get(layer.name)
        if layer.name in buffers:
            raise InputError("a buffer, which is not trained", layer=layer.name, remedy="leave it out with --skip")
        if parameter is None:
            raise InputError("the model has no such parameter", layer=layer.name, remedy="take layers of this model")
        if tuple(parameter.shape) != layer.weight_shape:
            raise InputError(f"weight is {tuple(parameter.shape)}, expected {layer.weight_shape}", layer=layer.name)
        found[layer.name] = parameter
    return found


def layer_weights(model: torch.nn.Module, layers: Sequence[ConvLayer]) -> dict[str, npt.NDArray[Any]]:
    """The weight of every layer as a NumPy array of its own, float32 [F, C, R, S]."""
    return {name: parameter.detach().float().cpu().numpy().copy() for name, parameter in
            layer_parameters(model, layers).items()}  # fmt: skip

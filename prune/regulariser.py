"""`Regulariser`, the hooks by which a method acts while the trainer trains a net towards its masks."""

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
    "CombinedRegulariser",
    "Deployed",
    "Regulariser",
    "layer_parameters",
    "layer_weights",
]


class Regulariser(ABC):
    """Base class of the regularisers. Every hook but `masks` does nothing by default.

    In every iteration the trainer adds `loss` to its own loss, calls `after_backward` once gradients are computed,
    unscaled and averaged over processes, and calls `after_step` after the optimiser's step. `after_epoch` follows the
    last iteration of an epoch. After the stage come `masks` and then `finish`. Checkpoints use `state` and `restore`.
    """

    @property
    def finished(self) -> bool:
        """Whether the stage can end before its last epoch; asked before every epoch but the first."""
        return False

    def loss(self) -> torch.Tensor | None:
        """A term to add to the loss, a scalar tensor, or None."""
        return None

    def after_backward(self) -> None:  # noqa: B027 - a hook may do nothing
        """Change the gradients before the optimiser's step."""

    def after_step(self, lr: float) -> None:  # noqa: B027 - a hook may do nothing
        """Change the weights after an optimiser's step with learning rate ``lr``."""

    def after_epoch(self, epoch: int) -> None:  # noqa: B027 - a hook may do nothing
        """Act after epoch ``epoch``, counted from 1, such as grouping filters by their present weights."""

    @abstractmethod
    def masks(self) -> Masks:
        """The masks that follow from the present weights, bool [F, C, R, S] by parameter name."""

    def finish(self) -> None:  # noqa: B027 - a hook may do nothing
        """Remove what the regulariser has added to the module."""

    def state(self) -> dict[str, torch.Tensor]:
        """Tensors for a checkpoint: what the module's own state does not hold."""
        return {}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:  # noqa: B027 - a hook may do nothing
        """Continue from what `state` returned."""

    def report(self) -> dict[str, Any]:
        """Figures for the log and for the manifest; values that JSON can hold."""
        return {}


class CombinedRegulariser(Regulariser):
    """Several regularisers as one: layers with different settings each need their own."""

    def __init__(self, parts: Sequence[Regulariser]) -> None:
        self._parts = list(parts)

    @property
    def finished(self) -> bool:
        """Whether all parts are finished."""
        return all(part.finished for part in self._parts)

    def loss(self) -> torch.Tensor | None:
        """The sum of the parts' terms."""
        terms = [term for part in self._parts if (term := part.loss()) is not None]
        return sum(terms[1:], terms[0]) if terms else None

    def after_backward(self) -> None:
        """Call the hook of each part."""
        for part in self._parts:
            part.after_backward()

    def after_step(self, lr: float) -> None:
        """Call the hook of each part."""
        for part in self._parts:
            part.after_step(lr)

    def after_epoch(self, epoch: int) -> None:
        """Call the hook of each part."""
        for part in self._parts:
            part.after_epoch(epoch)

    def masks(self) -> Masks:
        """The masks of all parts."""
        return {name: mask for part in self._parts for name, mask in part.masks().items()}

    def finish(self) -> None:
        """Call the hook of each part."""
        for part in self._parts:
            part.finish()

    def state(self) -> dict[str, torch.Tensor]:
        """The states of all parts; the number of a part is the prefix of its names."""
        return {f"{i}.{name}": value for i, part in enumerate(self._parts) for name, value in part.state().items()}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Give each part its share of `state`."""
        for i, part in enumerate(self._parts):
            prefix = f"{i}."
            part.restore({key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)})

    def report(self) -> dict[str, Any]:
        """The reports of all parts, in the order of the first layer of each part."""
        return {"parts": [part.report() for part in self._parts]}


@dataclass(frozen=True)
class Deployed:
    """What the manifest says about a net that a method converted and that is ready for export.

    Attributes:
        masks: for each converted layer, the weights of the original layer that its successor still reads, bool
            [F, C, R, S].
        params: number of parameters of the layers that took their place, by the original parameter names.
        report: figures for the manifest; values that JSON can hold.
    """

    masks: Masks
    params: dict[str, int]
    report: dict[str, Any]


def layer_parameters(model: torch.nn.Module, layers: Sequence[ConvLayer]) -> dict[str, torch.nn.Parameter]:
    """The parameter that holds the weight of each layer, by its name.

    Raises:
        InputError: the model has no such parameter, it is a buffer, or it has another shape.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))  # tied ones under each of their names
    buffers = dict(model.named_buffers())
    found = {}
    for layer in layers:
        parameter = parameters.get(layer.name)
        if layer.name in buffers:
            raise InputError("is a buffer and not trained", layer=layer.name, remedy="leave it out with --skip")
        if parameter is None:
            raise InputError("the model has no such parameter", layer=layer.name, remedy="use layers of this model")
        if tuple(parameter.shape) != layer.weight_shape:
            found_shape = tuple(parameter.shape)
            raise InputError(f"the weight has shape {found_shape}, expected {layer.weight_shape}", layer=layer.name)
        found[layer.name] = parameter
    return found


def layer_weights(model: torch.nn.Module, layers: Sequence[ConvLayer]) -> dict[str, npt.NDArray[Any]]:
    """A copy of each layer's weight, float32 [F, C, R, S], by parameter name."""
    return {name: parameter.detach().float().cpu().numpy().copy() for name, parameter in
            layer_parameters(model, layers).items()}  # fmt: skip

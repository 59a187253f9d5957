"""Apply masks to a PyTorch module: set pruned weights to zero, and keep them exactly zero during training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from trtkp.errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = ["apply_masks", "frozen_masks", "masked_parameters"]


def masked_parameters(
    model: torch.nn.Module, masks: Mapping[str, npt.NDArray[Any]]
) -> dict[str, tuple[torch.nn.Parameter, torch.Tensor]]:
    """Each masked parameter, with its mask as a bool tensor on the parameter's device.

    Args:
        model: the module.
        masks: parameter name to mask, of the parameter's shape; True where a weight is kept.

    Raises:
        InputError: the model has no parameter of that name, or one of another shape.
    """
    import torch

    parameters = dict(model.named_parameters(remove_duplicate=False))  # tied ones under each of their names
    pairs = {}
    for name, mask in masks.items():
        parameter = parameters.get(name)
        if parameter is None:
            raise InputError("the model has no such parameter", layer=name, remedy="use masks made for this model")
        if tuple(parameter.shape) != mask.shape:
            raise InputError(f"the weight has shape {tuple(parameter.shape)}, its mask {mask.shape}", layer=name)
        pairs[name] = (parameter, torch.as_tensor(mask, dtype=torch.bool, device=parameter.device))
    return pairs


def apply_masks(model: torch.nn.Module, masks: Mapping[str, npt.NDArray[Any]]) -> None:
    """Set every weight whose mask is False to zero.

    Raises:
        InputError: see `masked_parameters`.
    """
    _zero(masked_parameters(model, masks).values())


def _zero(pairs: Iterable[tuple[torch.nn.Parameter, torch.Tensor]]) -> None:
    import torch

    with torch.no_grad():
        for parameter, mask in pairs:
            parameter.masked_fill_(~mask, 0)


@contextmanager
def frozen_masks(model: torch.nn.Module, masks: Mapping[str, npt.NDArray[Any]]) -> Iterator[None]:
    """A context in which pruned weights get no gradient and are exactly zero at every forward pass.

    A hook on each parameter zeroes the gradient. Weight decay keeps a zero at zero, but an optimiser that took steps
    before the context may still hold momentum for a pruned weight. The masks are therefore applied again after every
    step of any optimiser.

    Raises:
        InputError: see `masked_parameters`.
    """
    from torch.optim.optimizer import register_optimizer_step_post_hook

    pairs = list(masked_parameters(model, masks).values())
    _zero(pairs)
    hooks = [
        parameter.register_hook(lambda gradient, mask=mask: gradient.masked_fill(~mask, 0))
        for parameter, mask in pairs
        if parameter.requires_grad
    ]
    hooks.append(register_optimizer_step_post_hook(lambda *_: _zero(pairs)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()

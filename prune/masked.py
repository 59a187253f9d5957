"""Masks on a PyTorch module: zero the pruned weights, and keep them exactly zero while training goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from trtkp.errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = ["apply_masks", "fine_tune", "frozen_masks", "masked_parameters"]


def masked_parameters(
    model: torch.nn.Module, masks: Mapping[str, npt.NDArray[Any]]
) -> dict[str, tuple[torch.nn.Parameter, torch.Tensor]]:
    """Every masked parameter with its mask as a bool tensor on the parameter's device.

    Raises:
        InputError: no parameter of that name, or another shape.
    """
    import torch

    parameters = dict(model.named_parameters(remove_duplicate=False))  # tied ones under each of their names
    pairs = {}
    for name, mask in masks.items():
        parameter = parameters.get(name)
        if parameter is None:
            raise InputError("the model has no such parameter", layer=name, remedy="take masks made for this model")
        if tuple(parameter.shape) != mask.shape:
            raise InputError(f"weight is {tuple(parameter.shape)}, its mask {mask.shape}", layer=name)
        pairs[name] = (parameter, torch.as_tensor(mask, dtype=torch.bool, device=parameter.device))
    return pairs


def apply_masks(model: torch.nn.Module, masks: Mapping[str, npt.NDArray[Any]]) -> None:
    """Zero every weight whose mask is False."""
    import torch

    with torch.no_grad():
        for parameter, mask in masked_parameters(model, masks).values():
            parameter.masked_fill_(~mask, 0)


@contextmanager
def frozen_masks(model: torch.nn.Module, masks: Mapping[str, npt.NDArray[Any]]) -> Iterator[None]:
    """Inside, pruned weights get no gradient, and are exactly zero at every forward pass.

    Momentum and weight decay leave a zero without gradient at zero; an optimiser that was stepped before carries
    momentum from then, so the masks are applied again after each of its steps.
    """
    from torch.optim.optimizer import register_optimizer_step_post_hook

    apply_masks(model, masks)
    hooks = [
        parameter.register_hook(lambda gradient, mask=mask: gradient.masked_fill(~mask, 0))
        for parameter, mask in masked_parameters(model, masks).values()
        if parameter.requires_grad
    ]
    hooks.append(register_optimizer_step_post_hook(lambda *_: apply_masks(model, masks)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def fine_tune(
    model: torch.nn.Module,
    masks: Mapping[str, npt.NDArray[Any]],
    batches: Callable[[], Iterable[tuple[torch.Tensor, torch.Tensor]]],
    *,
    epochs: int,
    lr: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    progress: Callable[[int, float], None] | None = None,
) -> None:
    """Train the kept weights with cross-entropy, SGD and a cosine schedule; the model is in eval mode afterwards.

    Args:
        model: classifier giving logits [N, classes]; changed in place.
        masks: masks to hold; an empty mapping trains everything.
        batches: called once per epoch, gives (input [N, ...], label [N]).
        epochs: passes over the data.
        lr: first learning rate, annealed to zero.
        momentum: of SGD.
        weight_decay: of SGD.
        progress: called after every epoch with its number, from 1, and its mean loss.
    """
    import torch

    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(1, epochs))
    with frozen_masks(model, masks):
        for epoch in range(1, epochs + 1):
            model.train()
            losses = []
            for inputs, labels in batches():
                loss = torch.nn.functional.cross_entropy(model(inputs), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
            schedule.step()
            if progress is not None:
                progress(epoch, sum(losses) / max(1, len(losses)))
    model.eval()

"""Masks on modules: zeros that stay exactly zero while the rest trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from trtkp.errors import InputError
from trtkp.pruning.masked import apply_masks, frozen_masks, masked_parameters
from trtkp.pruning.train.trainer import fine_tune

Optimizer = Callable[[Any], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1),
}


@pytest.fixture
def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.Flatten(), nn.Linear(3, 3))


@pytest.fixture
def masks() -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    return {"0.weight": rng.random((4, 2, 3, 3)) < 0.5, "2.weight": rng.random((3, 4, 3, 3)) < 0.3}


def batches(count: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 2, 5, 5, generator=generator), torch.randint(0, 3, (8,), generator=generator))
        for _ in range(count)
    ]


def zeros_hold(net: nn.Module, masks: dict[str, np.ndarray[Any, Any]]) -> bool:
    parameters = dict(net.named_parameters())
    return all(bool((parameters[name].detach().numpy()[~mask] == 0).all()) for name, mask in masks.items())


def step(net: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(batch[0]), batch[1]).backward()
    optimizer.step()


def test_apply_masks(net: nn.Sequential, masks: dict[str, np.ndarray[Any, Any]]) -> None:
    before = {name: value.detach().clone().numpy() for name, value in net.named_parameters()}
    with torch.no_grad():
        net[0].weight[tuple(np.argwhere(~masks["0.weight"])[0])] = float("nan")
    apply_masks(net, masks)
    for name, value in net.named_parameters():
        want = np.where(masks[name], before[name], 0) if name in masks else before[name]
        assert np.array_equal(value.detach().numpy(), want)
        assert not np.signbit(value.detach().numpy()[want == 0]).any()


@pytest.mark.parametrize("used_before", [False, True])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_zeros_stay_exactly_zero(
    net: nn.Sequential, masks: dict[str, np.ndarray[Any, Any]], kind: str, used_before: bool
) -> None:
    optimizer = OPTIMIZERS[kind](net.parameters())
    if used_before:  # its momentum would move pruned weights
        for batch in batches():
            step(net, optimizer, batch)
    with frozen_masks(net, masks):
        assert zeros_hold(net, masks)
        start = net[2].weight.detach().clone().numpy()
        for batch in batches(6):
            step(net, optimizer, batch)
            assert zeros_hold(net, masks)
            assert (net[0].weight.grad.numpy()[~masks["0.weight"]] == 0).all()
    assert zeros_hold(net, masks)
    assert (net[2].weight.detach().numpy() != start)[masks["2.weight"]].all()


def test_masks_are_frozen_only_inside(net: nn.Sequential, masks: dict[str, np.ndarray[Any, Any]]) -> None:
    optimizer = OPTIMIZERS["sgd"](net.parameters())
    with pytest.raises(RuntimeError, match="inside"), frozen_masks(net, masks):
        raise RuntimeError("inside")
    step(net, optimizer, batches()[0])
    assert not zeros_hold(net, masks)
    assert net[0].weight.grad.numpy()[~masks["0.weight"]].any()


def test_parameters_without_gradient(net: nn.Sequential, masks: dict[str, np.ndarray[Any, Any]]) -> None:
    net[0].requires_grad_(requires_grad=False)
    optimizer = OPTIMIZERS["sgd"]([p for p in net.parameters() if p.requires_grad])
    with frozen_masks(net, masks):
        step(net, optimizer, batches()[0])
    assert zeros_hold(net, masks)


def test_tied_parameter_under_either_name() -> None:
    net = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3))
    net[1].weight = net[0].weight
    for name in ("0.weight", "1.weight"):
        assert masked_parameters(net, {name: np.ones((2, 2, 3, 3), bool)})[name][0] is net[0].weight


def test_masks_of_another_model(net: nn.Sequential) -> None:
    with pytest.raises(InputError, match=r"layer 7\.weight: the model has no such parameter"):
        apply_masks(net, {"7.weight": np.ones((1, 1, 1, 1), bool)})
    with pytest.raises(
        InputError, match=r"layer 0\.weight: the weight has shape \(4, 2, 3, 3\), its mask \(4, 2, 1, 9\)"
    ):
        apply_masks(net, {"0.weight": np.ones((4, 2, 1, 9), bool)})


def mean_loss(net: nn.Module) -> float:
    with torch.no_grad():
        return float(sum(nn.functional.cross_entropy(net(x), y) for x, y in batches(2)) / 2)


def test_fine_tune(net: nn.Sequential, masks: dict[str, np.ndarray[Any, Any]]) -> None:
    rates: list[float] = []
    first = mean_loss(net)
    original = torch.optim.SGD.step

    def spy(self: torch.optim.SGD, *args: Any, **kwargs: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        assert net.training
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", spy)
        fine_tune(net, masks, lambda: batches(2), epochs=30, lr=0.1)
    assert zeros_hold(net, masks)
    assert not net.training
    assert mean_loss(net) < 0.7 * first
    assert len(rates) == 60
    assert rates[0] == rates[1] == 0.1
    want = [0.05 * (1 + np.cos(np.pi * epoch / 30)) for epoch in range(30)]
    np.testing.assert_allclose(rates[::2], want, rtol=1e-9)


def test_fine_tune_without_epochs(net: nn.Sequential, masks: dict[str, np.ndarray[Any, Any]]) -> None:
    fine_tune(net, masks, list, epochs=0)
    assert zeros_hold(net, masks)
    assert not net.training

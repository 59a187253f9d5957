"""The growing penalty: its value and gradient by hand, its schedule, and training under it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from trtkp.errors import InputError
from trtkp.pruning.masked import apply_masks
from trtkp.pruning.method import Masks
from trtkp.pruning.methods.kep import top_n_mask
from trtkp.pruning.methods.kep_penalty import GrowingPenalty
from trtkp.pruning.regulariser import Regulariser
from trtkp.pruning.train.recipe import Recipe
from trtkp.pruning.train.trainer import Trainer


class Two(nn.Module):
    """Two weights by name."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([[1.0, -2.0], [3.0, -4.0]]))
        self.b = nn.Parameter(torch.tensor([0.5, -10.0]))


MASKS = {"a": np.array([[True, False], [False, True]]), "b": np.array([False, True])}


@pytest.mark.parametrize(
    ("norm", "value", "gradient_a", "gradient_b"),
    [
        ("l2", 0.25 / 2 * (4 + 9 + 0.25), [[0, -0.5], [0.75, 0]], [0.125, 0]),
        ("l1", 0.25 * (2 + 3 + 0.5), [[0, -0.25], [0.25, 0]], [0.25, 0]),
    ],
)
def test_value_and_gradient(norm: Any, value: float, gradient_a: Any, gradient_b: Any) -> None:
    model = Two()
    penalty = GrowingPenalty(model, MASKS, norm=norm)
    assert penalty.loss().item() == 0
    penalty.mu = 0.25
    loss = penalty.loss()
    loss.backward()
    assert loss.item() == pytest.approx(value)
    assert model.a.grad is not None
    assert model.b.grad is not None
    assert model.a.grad.tolist() == gradient_a
    assert model.b.grad.tolist() == gradient_b


def test_mu_grows_step_by_step_to_its_ceiling() -> None:
    penalty = GrowingPenalty(Two(), MASKS, delta=0.25, every=3, ceiling=0.6)
    seen = []
    for _ in range(12):
        seen.append(penalty.mu)
        penalty.after_step(0.1)
    assert seen == [0, 0, 0, 0.25, 0.25, 0.25, 0.5, 0.5, 0.5, 0.6, 0.6, 0.6]


def test_mu_reaches_the_ceiling_when_it_should() -> None:
    penalty = GrowingPenalty(Two(), MASKS, delta=1e-4, every=1, ceiling=0.1)
    for _ in range(999):
        penalty.after_step(0.1)
    assert penalty.mu < 0.1
    penalty.after_step(0.1)
    assert penalty.mu == 0.1


def test_finished_when_negligible_in_every_layer_or_at_the_ceiling() -> None:
    model = Two()
    penalty = GrowingPenalty(model, MASKS, delta=0.5, every=1, ceiling=1.0, negligible=1e-2)
    assert penalty.share_left() == 0.75
    assert not penalty.finished
    with torch.no_grad():
        model.a[0, 1] = model.a[1, 0] = 0.039  # of 4
    assert penalty.share_left() == pytest.approx(0.05)  # b: 0.5 of 10
    assert not penalty.finished
    with torch.no_grad():
        model.b[0] = -0.09
    assert penalty.share_left() == pytest.approx(0.039 / 4)
    assert penalty.finished
    with torch.no_grad():
        model.b[0] = 5
    assert not penalty.finished
    penalty.after_step(0.1)
    assert not penalty.finished
    penalty.after_step(0.1)
    assert penalty.finished


def test_nothing_to_push() -> None:
    model = Two()
    assert GrowingPenalty(model, {}).loss().item() == 0
    full = GrowingPenalty(model, {"b": np.array([True, True])})
    full.mu = 1
    assert full.loss().item() == 0
    assert full.share_left() == 0
    with torch.no_grad():
        model.b.zero_()
    assert GrowingPenalty(model, MASKS | {"b": np.array([False, False])}).share_left() == 0.75


def test_refresh_takes_new_masks() -> None:
    penalty = GrowingPenalty(Two(), MASKS)
    penalty.mu = 1
    penalty.refresh({"a": np.array([[False, True], [True, True]])})
    assert penalty.loss().item() == 0.5
    assert penalty.share_left() == 0.25


@pytest.mark.parametrize(
    "options", [{"delta": 0}, {"delta": -1}, {"every": 0}, {"ceiling": 0}, {"norm": "linf"}], ids=str
)
def test_schedules_that_cannot_grow(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="penalty"):
        GrowingPenalty(Two(), MASKS, **options)


def test_mask_without_parameter() -> None:
    with pytest.raises(InputError, match="layer c: the model has no such parameter"):
        GrowingPenalty(Two(), {"c": np.array([True])})


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2))


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(4, 16, 1, 5, 5, generator=generator)
    return [(x, (x.mean(dim=(1, 2, 3)) > 0).long()) for x in inputs]


class Data:
    """The batches, as the trainer takes them."""

    def __len__(self) -> int:
        return 4

    def epoch(self, number: int, first: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor, int]]:
        yield from ((x, y, len(y)) for x, y in batches()[first:])


class Seen(Regulariser):
    """Passes everything on, and writes down what the penalty says after every epoch."""

    def __init__(self, penalty: GrowingPenalty) -> None:
        self.penalty, self.rows = penalty, []  # type: ignore[var-annotated]
        self.loss, self.after_step = penalty.loss, penalty.after_step  # type: ignore[method-assign]

    @property
    def finished(self) -> bool:
        return self.penalty.finished

    def masks(self) -> Masks:
        return self.penalty.masks()

    def after_epoch(self, epoch: int) -> None:
        self.penalty.after_epoch(epoch)
        self.rows.append((epoch, self.penalty.mu, self.penalty.share_left()))


def train(net: nn.Module, penalty: GrowingPenalty, epochs: int, lr: float) -> list[tuple[int, float, float]]:
    seen = Seen(penalty)
    recipe = Recipe(epochs=epochs, lr=lr, momentum=0, weight_decay=0, schedule="constant")
    Trainer(net, Data(), recipe, regulariser=seen).run()
    apply_masks(net, penalty.masks())
    return seen.rows


@pytest.mark.parametrize(
    ("norm", "delta", "negligible"),
    [("l2", 0.25, 0.02), ("l1", 0.005, 0.1)],  # l1 ends in steps of lr times mu about zero
)
def test_training_drives_selected_weights_to_zero(norm: Any, delta: float, negligible: float) -> None:
    net = small_net()
    masks = {"0.weight": top_n_mask(net[0].weight.detach().numpy(), 4)}
    penalty = GrowingPenalty(net, masks, delta=delta, every=1, ceiling=100, norm=norm, negligible=negligible)
    first = penalty.share_left()
    epochs, mus, shares = zip(*train(net, penalty, 100, 0.02), strict=True)
    assert list(epochs) == list(range(1, len(epochs) + 1))
    np.testing.assert_allclose(mus, [4 * delta * epoch for epoch in epochs])
    assert first > 0.5
    # it ended because the weights were small enough
    assert 2 < len(epochs) < 60
    assert shares[-1] < negligible <= min(shares[:-1])
    weight = net[0].weight.detach().numpy()
    assert (weight[~masks["0.weight"]] == 0).all()
    assert (weight[masks["0.weight"]] != 0).all()
    assert not net.training


def test_training_ends_at_the_ceiling_and_after_the_epochs() -> None:
    for ceiling, epochs, expected in ((0.2, 50, 5), (10, 3, 3)):
        net = small_net()
        masks = {"0.weight": top_n_mask(net[0].weight.detach().numpy(), 4)}
        penalty = GrowingPenalty(net, masks, delta=0.01, every=1, ceiling=ceiling)
        assert len(train(net, penalty, epochs, 1e-4)) == expected
        assert (net[0].weight.detach().numpy()[~masks["0.weight"]] == 0).all()


def test_refreshed_masks_are_the_ones_that_hold() -> None:
    net = small_net()
    masks = {"0.weight": top_n_mask(net[0].weight.detach().numpy(), 4)}
    other = {"0.weight": ~masks["0.weight"]}
    penalty = GrowingPenalty(net, masks, delta=0.01, every=1, rank=lambda: other)
    train(net, penalty, 2, 1e-3)
    weight = net[0].weight.detach().numpy()
    assert np.array_equal(weight != 0, other["0.weight"])


def test_a_restored_penalty_goes_on_where_it_was() -> None:
    penalty = GrowingPenalty(Two(), MASKS, delta=0.25, every=3)
    for _ in range(7):
        penalty.after_step(0.1)
    other = {"a": ~MASKS["a"], "b": MASKS["b"]}
    penalty.refresh(other)
    again = GrowingPenalty(Two(), MASKS, delta=0.25, every=3)
    again.restore(penalty.state())
    assert again.mu == penalty.mu == 0.5
    assert again.share_left() == penalty.share_left()
    again.after_step(0.1)
    again.after_step(0.1)
    assert again.mu == 0.75
    assert np.array_equal(again.masks()["a"], other["a"])

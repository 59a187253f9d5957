r"""KEP's training: a penalty on the weights that the prior mask selects, growing until they are negligible.

    L = CE + (mu_t / 2) ||M o W||_F^2        (or mu_t ||M o W||_1),        M = 1 where the mask prunes,

with mu_t raised by ``delta`` every ``every`` iterations, until the selected weights of every layer are below 1e-3 of
the layer's largest or mu reaches its ceiling. Reconstructed: "controllable penalty selected through a prior-knowledge
mask" is the abstract's; the growing schedule is in the spirit of growing regularisation (GReg, ICLR 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy.typing as npt

from trtkp.errors import InputError
from trtkp.prune.masked import apply_masks, masked_parameters

if TYPE_CHECKING:
    import torch

    from trtkp.prune.method import Masks

__all__ = ["GrowingPenalty", "train_with_penalty"]


class GrowingPenalty:
    """The penalty term and its schedule.

    Args:
        model: the module whose parameters the masks name.
        masks: parameter name to mask, True where a weight is kept.
        delta: what mu grows by.
        every: iterations between two raises of mu.
        ceiling: largest mu.
        norm: ``l2`` for the squared Frobenius norm (halved), ``l1`` for the sum of magnitudes.
        negligible: a layer is done when its selected weights are below this share of its largest weight.

    Raises:
        InputError: a mask without its parameter, or a schedule that cannot grow.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        masks: Mapping[str, npt.NDArray[Any]],
        *,
        delta: float = 1e-4,
        every: int = 10,
        ceiling: float = 1.0,
        norm: Literal["l2", "l1"] = "l2",
        negligible: float = 1e-3,
    ) -> None:
        if delta <= 0 or every < 1 or ceiling <= 0:
            raise InputError(f"penalty schedule delta {delta}, every {every}, ceiling {ceiling}: it cannot grow")
        if norm not in ("l2", "l1"):
            raise InputError(f"penalty norm {norm}: not known", remedy="use l2 or l1")
        self._model = model
        self._delta, self._every, self._ceiling, self._norm, self._negligible = delta, every, ceiling, norm, negligible
        self._iteration = 0
        self.mu = 0.0
        self.refresh(masks)

    def refresh(self, masks: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take new masks, as after re-ranking the weights once per epoch."""
        self._pairs = masked_parameters(self._model, masks)

    def loss(self) -> torch.Tensor:
        """The penalty at the present mu, a scalar tensor."""
        import torch

        terms = [parameter * ~mask for parameter, mask in self._pairs.values()]
        if not terms:
            return torch.zeros(())
        if self._norm == "l2":
            return self.mu / 2 * torch.stack([w.square().sum() for w in terms]).sum()
        return self.mu * torch.stack([w.abs().sum() for w in terms]).sum()

    def step(self) -> None:
        """Count an iteration, and raise mu when its turn has come."""
        self._iteration += 1
        if self._iteration % self._every == 0:
            raises = self._iteration // self._every  # a product does not drift as a sum would
            self.mu = min(self._ceiling, raises * self._delta)

    def share_left(self) -> float:
        """Largest selected weight as a share of its layer's largest, over all layers; 0 with nothing selected."""
        shares = [0.0]
        for parameter, mask in self._pairs.values():
            selected = parameter.detach()[~mask].abs()
            if selected.numel():
                shares.append(float(selected.max() / parameter.detach().abs().max().clamp_min(1e-30)))
        return max(shares)

    @property
    def finished(self) -> bool:
        """Whether the selected weights are negligible, or mu is at its ceiling."""
        return self.mu >= self._ceiling or self.share_left() < self._negligible


def train_with_penalty(
    model: torch.nn.Module,
    penalty: GrowingPenalty,
    masks: Masks,
    batches: Callable[[], Iterable[tuple[torch.Tensor, torch.Tensor]]],
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    refresh: Callable[[], Masks] | None = None,
    progress: Callable[[int, float, float], None] | None = None,
) -> Masks:
    """Train under the penalty until it is finished or the epochs are over, then zero the selected weights.

    Args:
        model: classifier giving logits [N, classes]; changed in place, in eval mode afterwards.
        penalty: made for the model and the masks.
        masks: the prior masks.
        batches: called once per epoch, gives (input [N, ...], label [N]).
        optimizer: over the model's parameters.
        epochs: at most this many passes over the data.
        refresh: gives new masks after each epoch; without it the prior masks stay, as "prior knowledge" suggests.
        progress: called after every epoch with its number from 1, mu, and `GrowingPenalty.share_left`.

    Returns:
        The masks that hold at the end.
    """
    import torch

    for epoch in range(1, epochs + 1):
        model.train()
        for inputs, labels in batches():
            loss = torch.nn.functional.cross_entropy(model(inputs), labels) + penalty.loss()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            penalty.step()
        if refresh is not None:
            masks = refresh()
            penalty.refresh(masks)
        if progress is not None:
            progress(epoch, penalty.mu, penalty.share_left())
        if penalty.finished:
            break
    apply_masks(model, masks)
    model.eval()
    return masks

r"""KEP's training: a penalty on the weights that the prior mask drops, growing until these weights are negligible.

    L = CE + (mu_t / 2) ||M o W||_F^2        (or mu_t ||M o W||_1),        M = 1 where the mask prunes.

mu_t rises by ``delta`` every ``every`` iterations. Training towards the mask ends when the penalised weights of every
layer are below 1e-3 of the layer's largest weight, or when mu reaches its ceiling.

From KEP's abstract: a "controllable penalty selected through a prior-knowledge mask". The rest is our reconstruction;
the growing schedule follows growing regularisation (GReg, ICLR 2021), with numbers of our own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy.typing as npt

from trtkp.errors import InputError
from trtkp.pruning.masked import masked_parameters
from trtkp.pruning.regulariser import Regulariser

if TYPE_CHECKING:
    import torch

    from trtkp.pruning.method import Masks

__all__ = ["GrowingPenalty"]


class GrowingPenalty(Regulariser):
    """The penalty term and its schedule.

    Args:
        model: the module; its parameters have the names that the masks have.
        masks: parameter name to mask, bool, True where a weight is kept.
        delta: what mu grows by at each raise.
        every: iterations between two raises of mu.
        ceiling: largest mu.
        norm: ``l2`` for half the squared Frobenius norm, ``l1`` for the sum of magnitudes.
        negligible: training ends when the penalised weights of every layer are below this share of its largest weight.
        rank: makes new masks after each epoch; None to keep the prior masks.
        inside: for masks that are lists with 2:4 inside, gives what 2:4 keeps of them. The penalty is on all the rest.

    Raises:
        InputError: the model has no parameter for a mask, or the schedule cannot grow.
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
        rank: Callable[[], Masks] | None = None,
        inside: Callable[[Masks], Masks] | None = None,
    ) -> None:
        if delta <= 0 or every < 1 or ceiling <= 0:
            raise InputError(f"a penalty with delta {delta}, every {every}, ceiling {ceiling} cannot grow")
        if norm not in ("l2", "l1"):
            raise InputError(f"penalty norm {norm}: not known", remedy="use l2 or l1")
        self._model = model
        self._delta, self._every, self._ceiling, self._norm, self._negligible = delta, every, ceiling, norm, negligible
        self._rank, self._inside = rank, inside
        self._iteration = 0
        self.mu = 0.0
        self.refresh(masks)

    def refresh(self, masks: Mapping[str, npt.NDArray[Any]]) -> None:
        """Replace the masks, as after ranking the weights again."""
        self._masks = dict(masks)
        self._hold(self._masks if self._inside is None else self._inside(self._masks))

    def _hold(self, kept: Masks) -> None:
        self._kept, self._pairs = kept, masked_parameters(self._model, kept)

    def loss(self) -> torch.Tensor:
        """The penalty with the present mu, a scalar tensor."""
        import torch

        terms = [parameter * ~mask for parameter, mask in self._pairs.values()]
        if not terms:
            return torch.zeros(())
        if self._norm == "l2":
            return self.mu / 2 * torch.stack([w.square().sum() for w in terms]).sum()
        return self.mu * torch.stack([w.abs().sum() for w in terms]).sum()

    def after_step(self, lr: float) -> None:
        """Count an iteration, and raise mu every ``every`` iterations."""
        self._count(self._iteration + 1)

    def _count(self, iteration: int) -> None:
        self._iteration = iteration
        raises = iteration // self._every  # mu = raises · delta: adding delta each time would add up rounding errors
        self.mu = min(self._ceiling, raises * self._delta)

    def after_epoch(self, epoch: int) -> None:
        """Make the masks again, if ``rank`` was given."""
        if self._rank is not None:
            self.refresh(self._rank())

    def masks(self) -> Masks:
        """The masks that the penalty trains towards; with 2:4 inside lists, the masks of the lists."""
        return self._masks

    def state(self) -> dict[str, torch.Tensor]:
        """The number of iterations and the masks."""
        import torch

        parts = {"mask": self._masks, "kept": self._kept if self._inside is not None else {}}
        masks = {
            f"{part}.{name}": torch.from_numpy(mask.astype("uint8"))
            for part, held in parts.items()
            for name, mask in held.items()
        }
        return {"iteration": torch.tensor(self._iteration), **masks}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Continue at that iteration, with those masks."""
        self._count(int(state["iteration"]))
        self._masks = {name: state[f"mask.{name}"].numpy().astype(bool) for name in self._masks}
        part = "mask" if self._inside is None else "kept"
        self._hold({name: state[f"{part}.{name}"].numpy().astype(bool) for name in self._masks})

    def report(self) -> dict[str, float]:
        """mu, and `share_left`."""
        return {"mu": self.mu, "share_left": self.share_left()}

    def share_left(self) -> float:
        """The largest penalised weight as a share of its layer's largest, over all layers; 0 if none is penalised."""
        shares = [0.0]
        for parameter, mask in self._pairs.values():
            selected = parameter.detach()[~mask].abs()
            if selected.numel():
                shares.append(float(selected.max() / parameter.detach().abs().max().clamp_min(1e-30)))
        return max(shares)

    @property
    def finished(self) -> bool:
        """Whether the penalised weights are negligible, or mu has reached its ceiling."""
        return self.mu >= self._ceiling or self.share_left() < self._negligible

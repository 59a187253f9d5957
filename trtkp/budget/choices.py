"""What a layer may become, and the best choice for every layer under a budget.

Let layer l at level k cost c_lk (ms, or MACs) and spoil the output by e_lk. The choice is the multiple-choice knapsack

    min sum_lk e_lk x_lk,   sum_lk c_lk x_lk <= budget,   sum_k x_lk = 1,   x_lk in {0, 1},

solved exactly by HiGHS (Huangfu and Hall 2018, doi 10.1007/s12532-017-0130-5). That errors of layers add up is an
assumption; `trtkp.budget.study` searches around it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["DENSE", "Choice", "Level", "cheapest", "choose", "pick", "total"]


_TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True, order=True)
class Level:
    """How far a layer is pruned, and how coarsely; ratio 0 leaves it dense."""

    ratio: float
    filter_group: int = 1
    channel_block: int = 1

    @property
    def label(self) -> str:
        """Such as ``50% of 64 x 1``, in blocks of filters x channels."""
        return f"{self.ratio:.0%} of {self.filter_group} x {self.channel_block}" if self.ratio else "dense"


DENSE = Level(0.0)


@dataclass(frozen=True)
class Choice:
    """One layer at one level.

    Attributes:
        level: see there.
        latency_ms: of the layer's fastest form.
        macs: per sample.
        error: squared relative error of the net's outputs with this layer alone pruned.
    """

    level: Level
    latency_ms: float
    macs: int
    error: float


def choose(
    errors: Sequence[npt.NDArray[np.float64]], costs: Sequence[npt.NDArray[np.float64]], budget: float
) -> list[int] | None:
    """The level of every layer that spoils least within the budget; None where no choice is cheap enough.

    Args:
        errors: per layer, of every level.
        costs: likewise, in any unit.
        budget: of all layers together.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import block_diag

    if sum(float(cost.min()) for cost in costs) > budget:
        return None
    one_each = LinearConstraint(block_diag([np.ones((1, len(error))) for error in errors]), 1, 1)
    spent = np.concatenate(costs)
    affordable = (
        LinearConstraint(spent[None] / budget, -np.inf, 1) if budget > 0 else LinearConstraint(spent[None], 0, 0)
    )
    flat = np.concatenate(errors)
    scale = max(float(flat.max()), np.finfo(np.float64).tiny)
    solved = milp(
        flat / scale,
        constraints=[one_each, affordable],
        integrality=np.ones(len(flat)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 1e-6, "time_limit": 20.0},
    )
    if solved.x is None:
        return None
    ends = np.cumsum([len(error) for error in errors])
    return [int(part.argmax()) for part in np.split(solved.x, ends[:-1])]


def pick(
    choices: Mapping[str, Sequence[Choice]],
    budget: float,
    *,
    by: str,
    bend: Callable[[int, npt.NDArray[np.float64]], npt.NDArray[np.float64]] = lambda _, errors: errors,
) -> dict[str, Choice] | None:
    """`choose` by name.

    Args:
        choices: layer to its levels.
        budget: of all layers together.
        by: ``latency_ms`` or ``macs``.
        bend: changes the errors of the i-th layer before they are added up.
    """
    errors = [bend(i, _column(layer, "error")) for i, layer in enumerate(choices.values())]
    picked = choose(errors, [_column(layer, by) for layer in choices.values()], budget)
    if picked is None:
        return None
    return {name: layer[k] for (name, layer), k in zip(choices.items(), picked, strict=True)}


def _column(layer: Sequence[Choice], name: str) -> npt.NDArray[np.float64]:
    return np.array([getattr(choice, name) for choice in layer], np.float64)


def cheapest(choices: Mapping[str, Sequence[Choice]], *, by: str) -> float:
    """The least that all layers together can cost."""
    return float(sum(min(getattr(choice, by) for choice in layer) for layer in choices.values()))


def total(chosen: Mapping[str, Choice], *, by: str) -> float:
    """What all layers together cost."""
    return float(sum(getattr(choice, by) for choice in chosen.values()))

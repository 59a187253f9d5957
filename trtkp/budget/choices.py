"""Choose one level per layer so that the sum of the errors is smallest within a budget.

Let layer l at level k cost c_lk (milliseconds or MACs) and cause an error e_lk of the net's outputs. The choice is the
solution of the multiple-choice knapsack problem

    min sum_lk e_lk x_lk,   sum_lk c_lk x_lk <= budget,   sum_k x_lk = 1,   x_lk in {0, 1},

which HiGHS solves exactly (Huangfu and Hall 2018, doi 10.1007/s12532-017-0130-5). It assumes that the errors of layers
add up. They do not quite, so `trtkp.budget.study` searches around the solution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["DENSE", "Choice", "Level", "cheapest", "choose", "pick", "total"]


@dataclass(frozen=True, order=True)
class Level:
    """How much of a layer is pruned, and in what granularity. Ratio 0 leaves the layer dense.

    Example:
        >>> Level(0.5, filter_group=64).label, DENSE.label
        ('50% of 64 x 1', 'dense')
    """

    ratio: float
    filter_group: int = 1
    channel_block: int = 1

    @property
    def label(self) -> str:
        """The level in words, such as ``50% of 64 x 1``: a ratio, and blocks of filters x channels."""
        return f"{self.ratio:.0%} of {self.filter_group} x {self.channel_block}" if self.ratio else "dense"


DENSE = Level(0.0)


@dataclass(frozen=True)
class Choice:
    """One layer at one level.

    Attributes:
        level: the level.
        latency_ms: time of the layer in its fastest lowering, dense included.
        macs: multiply-accumulates of the layer for one sample.
        error: squared relative error of the net's outputs when only this layer is pruned.
    """

    level: Level
    latency_ms: float
    macs: int
    error: float


def choose(
    errors: Sequence[npt.NDArray[np.float64]], costs: Sequence[npt.NDArray[np.float64]], budget: float
) -> list[int] | None:
    """For each layer, the index of the level in the solution; None if even the cheapest levels exceed the budget.

    Args:
        errors: for each layer, the error of each of its levels.
        costs: for each layer, the cost of each of its levels, in any unit.
        budget: largest sum of the costs, in the same unit.

    Example:
        >>> errors = [np.array([0.0, 1.0]), np.array([0.0, 5.0])]
        >>> costs = [np.array([4.0, 2.0]), np.array([4.0, 2.0])]
        >>> choose(errors, costs, budget=6.0)  # the second layer is the sensitive one: it stays dense
        [1, 0]
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import block_diag

    if sum(float(cost.min()) for cost in costs) > budget:
        return None
    one_each = LinearConstraint(block_diag([np.ones((1, len(error))) for error in errors]), 1, 1)
    # costs are divided by the budget and errors by the largest error: the solver's tolerances are absolute
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
    transform: Callable[[int, npt.NDArray[np.float64]], npt.NDArray[np.float64]] = lambda _, errors: errors,
) -> dict[str, Choice] | None:
    """`choose` for layers by name; None if even the cheapest levels exceed the budget.

    Args:
        choices: parameter name of a layer to its levels.
        budget: largest sum of the costs, in the unit of ``by``.
        by: the cost, ``latency_ms`` or ``macs``.
        transform: changes the errors of the i-th layer, [levels], before they are added up.
    """
    errors = [transform(i, _column(layer, "error")) for i, layer in enumerate(choices.values())]
    picked = choose(errors, [_column(layer, by) for layer in choices.values()], budget)
    if picked is None:
        return None
    return {name: layer[k] for (name, layer), k in zip(choices.items(), picked, strict=True)}


def _column(layer: Sequence[Choice], name: str) -> npt.NDArray[np.float64]:
    return np.array([getattr(choice, name) for choice in layer], np.float64)


def cheapest(choices: Mapping[str, Sequence[Choice]], *, by: str) -> float:
    """The least cost of all layers together."""
    return float(sum(min(getattr(choice, by) for choice in layer) for layer in choices.values()))


def total(chosen: Mapping[str, Choice], *, by: str) -> float:
    """The cost of all layers together with the chosen levels."""
    return float(sum(getattr(choice, by) for choice in chosen.values()))

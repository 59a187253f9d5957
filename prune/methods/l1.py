"""Plain L1 kernel pruning, a baseline: V-SKP's procedure with ``||w_oc||_1`` as the score (alpha 1, beta 0)."""

from __future__ import annotations

from dataclasses import dataclass

from trtkp.errors import InputError
from trtkp.pruning.methods.vskp import VSKP

__all__ = ["L1"]


@dataclass(frozen=True)
class L1(VSKP):
    """Keep the kernels of largest L1 norm, the same number in every filter of a layer. Options are those of V-SKP."""

    # not settings of this method, but still recorded with the others
    alpha: float = 1.0
    beta: float = 0.0

    name = "l1"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha != 1 or self.beta:
            raise InputError(f"--alpha {self.alpha}, --beta {self.beta}: plain L1 has neither", remedy="use -m vskp")

"""Settings that several pruning methods share, and the arithmetic of shares."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor
from typing import Annotated, TypeAlias

from trtkp.pruning.nm import NM_PATTERNS
from trtkp.settings import Setting

__all__ = [
    "ALLOCATIONS",
    "Allocation",
    "ChannelBlock",
    "Cluster",
    "FilterGroup",
    "Include",
    "Nm",
    "Pointwise",
    "RoundTo",
    "Skip",
    "exact_floor",
]

#: What ``--allocation`` takes besides a file.
ALLOCATIONS = ("global", "uniform")

Allocation: TypeAlias = Annotated[
    str,
    Setting(
        "What the ratio means: one threshold for the whole net (global) or the same share in every layer (uniform). "
        "The command line also takes a file, from trtkp search or trtkp advise --json.",
        choices=ALLOCATIONS,
        searched=True,
    ),
]
FilterGroup: TypeAlias = Annotated[
    int, Setting("Filters that share one list of kept positions or channels.", ge=1, searched=True)
]
ChannelBlock: TypeAlias = Annotated[
    int, Setting("Consecutive channels that are kept or removed together.", ge=1, searched=True)
]
Cluster: TypeAlias = Annotated[bool, Setting("Group filters whose scores are alike, instead of consecutive filters.")]
RoundTo: TypeAlias = Annotated[int, Setting("Round the number of channels that are kept to a multiple of this.", ge=1)]
Pointwise: TypeAlias = Annotated[bool, Setting("Prune 1x1 layers too.")]
Nm: TypeAlias = Annotated[
    str | None,
    Setting(
        "2:4 sparsity inside the lists: each filter keeps two of every four listed weights. The ratio is what lists "
        "and 2:4 remove together.",
        choices=NM_PATTERNS,
    ),
]
Include: TypeAlias = Annotated[
    Sequence[str],
    Setting(
        "Layers to prune, by name or pattern; repeatable.",
        default="the method's scope",
        metavar="name",
        flag="--layers",
        group="Pruning",
        essential=True,
    ),
]
Skip: TypeAlias = Annotated[
    Sequence[str],
    Setting("Layers to leave dense, by name or pattern; repeatable.", metavar="name", group="Pruning", essential=True),
]


def exact_floor(value: float) -> int:
    """Floor of a product of a share and a count, not misled by rounding: 0.29 * 100 is 28.999... in binary, but 29.

    A value within a relative 1e-9 of an integer counts as that integer; the rounding error of one product is 1e-16.

    Example:
        >>> exact_floor(0.29 * 100), exact_floor(28.7)
        (29, 28)
    """
    nearest = round(value)
    return nearest if abs(value - nearest) < 1e-9 * max(1.0, abs(value)) else floor(value)

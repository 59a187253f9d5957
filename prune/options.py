"""What the options of several methods have in common: their checks, and the share that every layer loses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import floor
from pathlib import Path

from trtkp.errors import InputError
from trtkp.prune.conv_layer import ConvLayer
from trtkp.prune.patterns import matches

__all__ = ["check_allocation", "check_granularity", "check_ratio", "exact_floor", "layer_ratios", "read_ratios"]

_FORM = 'write {"layer or pattern": share to remove, ...}'


def check_ratio(ratio: float | None, flag: str = "--ratio") -> None:
    """Refuse what is not a share below 1.

    Raises:
        InputError: with the option's name.
    """
    if ratio is not None and not 0 <= ratio < 1:
        raise InputError(f"{flag} {ratio}: not a share", remedy="give 0 <= ratio < 1")


def check_allocation(allocation: str) -> None:
    """``global``, ``uniform``, or a ``.json`` file of ratios, which is read when the layers are known.

    Raises:
        InputError: anything else.
    """
    if allocation not in ("global", "uniform") and not allocation.endswith(".json"):
        raise InputError(
            f"--allocation {allocation}: not known", remedy="use global or uniform, or a .json file of ratios per layer"
        )


def check_granularity(filter_group: int, channel_block: int, round_to: int = 1) -> None:
    """Refuse blocks without members.

    Raises:
        InputError: a size below one.
    """
    if filter_group < 1 or channel_block < 1:
        raise InputError(f"--filter-group {filter_group}, --channel-block {channel_block}: sizes start at 1")
    if round_to < 1:
        raise InputError(f"--round-to {round_to}: counts are rounded to multiples of 1 or more")


def layer_ratios(allocation: str, ratio: float, layers: Sequence[ConvLayer]) -> dict[str, float] | None:
    """The share that every layer loses; None for ``global``, where the weights decide.

    Of a file the first pattern that fits a layer counts, and layers that none fits take ``ratio``.

    Raises:
        InputError: an unreadable file, a share that is none, or a pattern that fits no layer.
    """
    if allocation == "global":
        return None
    if allocation == "uniform":
        return {layer.name: ratio for layer in layers}
    ratios = read_ratios(allocation)
    for pattern in ratios:
        if not any(matches(layer.name, pattern) for layer in layers):
            raise InputError(
                f"no layer that is pruned is called {pattern}",
                file=allocation,
                remedy=f"the pruned layers are {', '.join(layer.name for layer in layers[:4])}, ...",
            )
    return {
        layer.name: next((share for pattern, share in ratios.items() if matches(layer.name, pattern)), ratio)
        for layer in layers
    }


def read_ratios(path: str) -> dict[str, float]:
    """The file of an allocation: shares to remove by layer name or pattern.

    Raises:
        InputError: not a readable JSON object of shares.
    """
    try:
        found = json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"not a readable file of ratios ({reason})", file=path, remedy=_FORM) from None
    if not isinstance(found, dict):
        raise InputError("not an object of ratios", file=path, remedy=_FORM)
    for name, share in found.items():
        if type(share) not in (int, float) or not 0 <= share < 1:
            raise InputError(f"ratio {share!r}: not a share", file=path, layer=name, remedy="give 0 <= ratio < 1")
    return {name: float(share) for name, share in found.items()}


def exact_floor(value: float) -> int:
    """Floor of a product; 0.29 * 100 is 28.999..., and one that misses an integer by rounding is that integer."""
    nearest = round(value)
    return nearest if abs(value - nearest) < 1e-9 * max(1.0, abs(value)) else floor(value)

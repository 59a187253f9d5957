"""What the options of several methods have in common: their checks."""

from __future__ import annotations

from math import floor

from trtkp.errors import InputError

__all__ = ["check_allocation", "check_granularity", "check_ratio", "exact_floor"]


def check_ratio(ratio: float | None, flag: str = "--ratio") -> None:
    """Refuse what is not a share below 1.

    Raises:
        InputError: with the option's name.
    """
    if ratio is not None and not 0 <= ratio < 1:
        raise InputError(f"{flag} {ratio}: not a share", remedy="give 0 <= ratio < 1")


def check_allocation(allocation: str) -> None:
    """``global`` or ``uniform``; files of settings per layer are read before (`prune.allocation`).

    Raises:
        InputError: anything else.
    """
    if allocation not in ("global", "uniform"):
        raise InputError(f"--allocation {allocation}: not known", remedy="use global or uniform")


def check_granularity(filter_group: int, channel_block: int, round_to: int = 1) -> None:
    """Refuse blocks without members.

    Raises:
        InputError: a size below one.
    """
    if filter_group < 1 or channel_block < 1:
        raise InputError(f"--filter-group {filter_group}, --channel-block {channel_block}: sizes start at 1")
    if round_to < 1:
        raise InputError(f"--round-to {round_to}: counts are rounded to multiples of 1 or more")


def exact_floor(value: float) -> int:
    """Floor of a product; 0.29 * 100 is 28.999..., and one that misses an integer by rounding is that integer."""
    nearest = round(value)
    return nearest if abs(value - nearest) < 1e-9 * max(1.0, abs(value)) else floor(value)

"""What the options of several methods have in common: their checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from math import floor
from reprlib import repr as shortened
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from trtkp.errors import InputError

__all__ = ["check_allocation", "check_granularity", "check_ratio", "check_types", "exact_floor"]

#: What is asked for where a value has another type.
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a name"}


def check_types(method: object, settings: Mapping[str, Any]) -> None:
    """Refuse settings that are not of the types of a method's fields.

    Nothing is converted: "8" and true are no numbers, 8 is one that may have decimals. None is a setting left out.

    Raises:
        InputError: with the setting's name, and what it takes.
    """
    for name, kind in _types(method).items():
        value = settings.get(name)
        if value is not None and not _fits(value, kind):
            raise InputError(f"setting {name}: {shortened(value)} is of the wrong type", remedy=f"give {_words(kind)}")


def _fits(value: object, kind: Any) -> bool:
    """Whether a value is of a type; true and false are no numbers, and of NumPy's only those that are Python's, too."""
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if get_origin(kind) is Sequence:
        (part,) = get_args(kind)
        return isinstance(value, list | tuple) and all(_fits(each, part) for each in value)
    if get_origin(kind) in (Union, UnionType):
        return any(_fits(value, part) for part in get_args(kind))
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


@cache
def _types(method: object) -> dict[str, Any]:
    """The type of every field."""
    kinds = get_type_hints(method)
    return {name: kinds[name] for name in getattr(method, "__dataclass_fields__", ())}


def _words(kind: Any) -> str:
    """A type in words."""
    if get_origin(kind) is Literal:
        return " or ".join(get_args(kind))
    if get_origin(kind) is Sequence:
        return "a list of numbers"
    return " or ".join(_WORDS[part] for part in get_args(kind) or (kind,) if part is not NoneType)


def check_ratio(ratio: float | None, flag: str = "--ratio") -> None:
    """Refuse what is not a share below 1.

    Raises:
        InputError: with the option's name.
    """
    if ratio is not None and not 0 <= ratio < 1:
        raise InputError(f"{flag} {ratio}: not a share", remedy="give 0 <= ratio < 1")


def check_allocation(allocation: str) -> None:
    """``global`` or ``uniform``; files of settings per layer are read before (`pruning.methods.allocation`).

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
    """Floor of a product of a share and a count, not misled by rounding: 0.29 * 100 is 28.999... in binary, but 29.

    A value within a relative 1e-9 of an integer counts as that integer; the rounding error of one product is 1e-16.

    Example:
        >>> exact_floor(0.29 * 100), exact_floor(28.7)
        (29, 28)
    """
    nearest = round(value)
    return nearest if abs(value - nearest) < 1e-9 * max(1.0, abs(value)) else floor(value)

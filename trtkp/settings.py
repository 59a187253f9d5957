"""Settings, each described once: its meaning, its bounds and how the command line spells it.

A setting is a field of a dataclass, or a keyword parameter of a function, whose type carries a `Setting`:

    @dataclass(frozen=True)
    class Options:
        runs: Annotated[int, Setting("Timed rounds.", ge=1)] = 100

        def __post_init__(self) -> None:
            check(self)

Command line, recipe files and the reference of all options are made from these descriptions. This module imports
nothing but the errors, so that pruning methods can be described where only NumPy and PyTorch are installed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from math import isfinite
from os import PathLike
from reprlib import repr as shortened
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from trtkp.errors import InputError

__all__ = [
    "Declared",
    "Description",
    "Setting",
    "check",
    "check_types",
    "check_values",
    "describe",
    "from_mapping",
    "nested_settings",
    "settings_of",
    "type_name",
]

T = TypeVar("T")

#: What is asked for where a value has another type.
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a name"}


@dataclass(frozen=True)
class Setting:
    """The description of one setting.

    Attributes:
        help: what it means, in a sentence or two; the default and the choices are added where they are shown.
        ge: smallest value; of a sequence, of each member, as are the other bounds and the choices.
        gt: value that must be exceeded.
        le: largest value.
        lt: value that must not be reached.
        choices: the values that there are.
        default: the default in words, where the value (often None) does not say it.
        group: heading in ``--help``, such as "TensorRT".
        essential: shown by plain ``--help``; the others by ``--help-all``.
        trained: of a pruning method, has an effect only where the model is trained.
        searched: of a pruning method, is chosen by ``trtkp search`` for every layer, or stands in for a ratio.
        command_line: False for settings of Python and recipe files alone.
        argument: a positional argument of the command line.
        flag: spelling on the command line, where it is not the name; "--on/--off" for a switch with two.
        short: a second spelling, such as "-o".
        metavar: what stands for the value in ``--help``.
        negated: the flag switches off what the setting switches on.
        unit: the command line takes multiples of this, such as MiB of a setting in bytes.
        none: value on the command line that means None.
        share: the command line takes 60% for 0.6.
    """

    help: str
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    choices: tuple[str, ...] = ()
    default: str | None = None
    group: str | None = None
    essential: bool = False
    trained: bool = False
    searched: bool = False
    command_line: bool = True
    argument: bool = False
    flag: str | None = None
    short: str | None = None
    metavar: str | None = None
    negated: bool = False
    unit: int = 1
    none: str | None = None
    share: bool = False

    @property
    def bounds(self) -> str:
        """The bounds in words, "" without any."""
        ge, gt, le, lt = (
            None if bound is None else f"{bound:.0%}" if self.share else f"{bound:g}"
            for bound in (self.ge, self.gt, self.le, self.lt)
        )
        if ge is not None and le is not None:
            return f"{ge} to {le}"
        if ge is not None and lt is not None:
            return f"{ge} to below {lt}"
        low = [f"{ge} or more"] if ge is not None else []
        low += [f"more than {gt}"] if gt is not None else []
        high = [f"at most {le}"] if le is not None else []
        high += [f"below {lt}"] if lt is not None else []
        return " and ".join(low + high)

    def admits(self, value: float) -> bool:
        """Whether a number is within the bounds; no NaN and no infinity is."""
        return (
            isfinite(value)
            and (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )


@dataclass(frozen=True)
class Declared:
    """A setting where it is declared: owner, name, type and default.

    Attributes:
        owner: the class or the function.
        name: of the field or parameter.
        kind: its type, without the description.
        default: its default, `dataclasses.MISSING` where it has none.
        setting: its description.
    """

    owner: Any
    name: str
    kind: Any
    default: Any
    setting: Setting

    @property
    def flag(self) -> str:
        """As the command line spells it, of two spellings the one that switches on."""
        return (self.setting.flag or f"--{self.name.replace('_', '-')}").partition("/")[0]

    @property
    def label(self) -> str:
        """As errors call it: the flag, or the name where there is none."""
        if self.setting.argument or not self.setting.command_line:
            return self.name
        return self.flag

    @property
    def plain(self) -> Any:
        """The type without None."""
        parts = [part for part in _parts(self.kind) if part is not NoneType]
        return parts[0] if len(parts) == 1 else self.kind

    @property
    def item(self) -> Any:
        """The type of a sequence's members; None for other types."""
        return get_args(self.plain)[0] if get_origin(self.plain) in (Sequence, tuple, list) else None

    @property
    def choices(self) -> tuple[str, ...]:
        """The values that there are, by the description or the type."""
        return self.setting.choices or (get_args(self.plain) if get_origin(self.plain) is Literal else ())

    @property
    def default_text(self) -> str | None:
        """The default in words; None where there is nothing to say."""
        if self.setting.default is not None:
            return self.setting.default
        if self.default is MISSING or self.default is None or self.default == () or isinstance(self.default, bool):
            return None
        if self.setting.unit != 1:
            return f"{self.default / self.setting.unit:g}"
        if isinstance(self.default, tuple | list):
            return ",".join(_number_text(value) for value in self.default)
        return _number_text(self.default)


@dataclass(frozen=True)
class Description:
    """A setting for readers: every part a text."""

    name: str
    flag: str | None
    type: str
    default: str
    help: str
    bounds: str
    owner: str


def describe(owner: Any) -> list[Description]:
    """The settings of a class or function, those of its nested settings classes after its own.

    Args:
        owner: a settings class, such as `trtkp.BuildOptions`, or a function with settings among its parameters.
    """
    own = [
        Description(
            name=item.name,
            flag=item.flag if item.setting.command_line and not item.setting.argument else None,
            type=" or ".join(item.choices) or type_name(item),
            default=_default_words(item),
            help=item.setting.help,
            bounds=item.setting.bounds,
            owner=owner.__name__,
        )
        for item in settings_of(owner).values()
    ]
    return own + [inner for kind in nested_settings(owner).values() for inner in describe(kind)]


def type_name(item: Declared) -> str:
    """The type of a setting's values, as the reference names it."""
    if item.setting.share:
        return "share"
    if any(_is_path(part) for part in _parts(item.kind)):
        return "path"
    if item.item is not None:
        return "text, repeatable" if item.item is str else "numbers"
    return {bool: "switch", int: "whole number", float: "number", str: "text"}.get(item.plain, _words(item.plain))


@cache
def settings_of(owner: Any) -> dict[str, Declared]:
    """The settings of a class or function by name, in the order of their declaration."""
    hints = get_type_hints(owner, include_extras=True)
    found = {}
    for name, default in _defaults(owner).items():
        hint = hints.get(name)
        if get_origin(hint) is Annotated:
            kind, *notes = get_args(hint)
            for note in notes:
                if isinstance(note, Setting):
                    found[name] = Declared(owner, name, kind, default, note)
    return found


@cache
def nested_settings(owner: Any) -> dict[str, Any]:
    """The fields of a class that are settings classes themselves."""
    hints = get_type_hints(owner)
    kinds = {name: hints.get(name) for name in _defaults(owner)}
    return {
        name: kind
        for name, kind in kinds.items()
        if isinstance(kind, type) and is_dataclass(kind) and (settings_of(kind) or nested_settings(kind))
    }


def check(instance: Any) -> None:
    """Check an instance's values; for ``__post_init__``.

    Raises:
        InputError: see `check_values`.
    """
    owner: Any = type(instance)
    check_values(owner, {name: getattr(instance, name) for name in _types(owner)})


def check_values(owner: Any, values: Mapping[str, Any], label: Callable[[Declared], str] | None = None) -> None:
    """Refuse values of another type, out of bounds, or not among the choices. None is a setting left out.

    Args:
        owner: the settings class or function.
        values: name to value; names that are no settings are left alone.
        label: what an error calls a setting; without it the flag, or the name where there is none.

    Raises:
        InputError: with the setting, its value and what it takes.
    """
    check_types(
        owner, values, None if label is None else {key: label(item) for key, item in settings_of(owner).items()}
    )
    for name, item in settings_of(owner).items():
        value = values.get(name)
        if value is None:
            continue
        called = item.label if label is None else label(item)
        members = value if item.item is not None else (value,)
        for member in members:
            if item.choices and member not in item.choices:
                raise InputError(f"{called} {member}: not known", remedy=f"use {_alternatives(item.choices)}")
            if isinstance(member, int | float) and not isinstance(member, bool) and not item.setting.admits(member):
                wanted = item.setting.bounds or "a finite number"
                raise InputError(f"{called} {_value_text(value, item)}: out of range", remedy=f"give {wanted}")


def check_types(owner: Any, values: Mapping[str, Any], labels: Mapping[str, str] | None = None) -> None:
    """Refuse values that are not of the types of their fields.

    Nothing is converted: "8" and true are no numbers, 8 is one that may have decimals. None is a setting left out.

    Raises:
        InputError: with the setting's name, and what it takes.
    """
    for name, kind in _types(owner).items():
        value = values.get(name)
        if value is not None and not _fits(value, kind):
            called = (labels or {}).get(name, name)
            raise InputError(
                f"setting {called}: {shortened(value)} is of the wrong type", remedy=f"give {_words(kind)}"
            )


def from_mapping(cls: Callable[..., T], given: Any, where: str) -> T:
    """An instance from what a YAML or JSON file holds; nested settings classes from nested mappings.

    Whole numbers are taken for numbers, "1e-4" too, which YAML takes for text, and lists for tuples.

    Args:
        cls: a settings class.
        given: name to value.
        where: what the mapping is called in errors.

    Raises:
        InputError: no mapping, an unknown name, or a bad value; whoever read the file adds its name.
    """
    if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
        raise InputError(f"{where} is no mapping of names")
    types, nested = _types(cls), nested_settings(cls)
    prefix = "" if nested else f"{where}."  # the names of a whole file need none
    values = {}
    for key, value in given.items():
        if key not in types:
            raise InputError(f"{where}: {key} is not known", remedy=f"use {', '.join(sorted(types))}")
        if value is None and NoneType not in _parts(types[key]):
            raise InputError(f"setting {prefix}{key}: nothing is given", remedy=f"give {_words(types[key])}")
        values[key] = from_mapping(nested[key], value, key) if key in nested else _from_file(value, types[key])
    check_types(cls, values, {key: f"{prefix}{key}" for key in types})
    check_values(cls, values, lambda item: f"{prefix}{item.name}")
    return cls(**values)


def _from_file(value: Any, kind: Any) -> Any:
    kinds = [part for part in _parts(kind) if part is not NoneType]
    for part in kinds:
        if get_origin(part) in (tuple, Sequence):
            item = get_args(part)[0]
            return tuple(_from_file(each, item) for each in (value if isinstance(value, list) else [value]))
    if float in kinds and type(value) in (int, str):
        try:
            return float(value)
        except ValueError:
            pass
    return value


def _parts(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _fits(value: object, kind: Any) -> bool:
    """Whether a value is of a type; true and false are no numbers, and of NumPy's only those that are Python's, too."""
    origin = get_origin(kind)
    if kind is Any:
        return True
    if origin is Literal:
        return isinstance(value, str)  # the choices are checked with the bounds
    if origin in (Sequence, tuple, list):
        part = get_args(kind)[0]
        return isinstance(value, list | tuple) and all(_fits(each, part) for each in value)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in get_args(kind))
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else origin or kind)


@cache
def _types(owner: Any) -> dict[str, Any]:
    """The type of every field or parameter."""
    kinds = get_type_hints(owner)
    return {name: kinds[name] for name in _defaults(owner) if name in kinds}


def _defaults(owner: Any) -> dict[str, Any]:
    """The default of every field that construction takes, or of every parameter."""
    if is_dataclass(owner):
        return {
            field.name: field.default_factory() if field.default_factory is not MISSING else field.default
            for field in fields(owner)
            if field.init
        }
    if isinstance(owner, type):
        return {}
    parameters = inspect.signature(owner).parameters.values()
    return {each.name: MISSING if each.default is each.empty else each.default for each in parameters}


def _words(kind: Any) -> str:
    """A type in words."""
    origin = get_origin(kind)
    if origin is Literal:
        return " or ".join(get_args(kind))
    if origin in (Sequence, tuple, list):
        return "a list of names" if get_args(kind)[0] is str else "a list of numbers"
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_words(part) for part in get_args(kind) if part is not NoneType))
    if _is_path(kind):
        return "a path"
    return _WORDS.get(kind, getattr(kind, "__name__", str(kind)))


def _is_path(kind: Any) -> bool:
    return get_origin(kind) is PathLike or (isinstance(kind, type) and issubclass(kind, PathLike))


def _default_words(item: Declared) -> str:
    if isinstance(item.default, bool):
        return "on" if item.default else "off"
    return item.default_text or ""


def _alternatives(choices: Sequence[str]) -> str:
    return " or ".join(choices) if len(choices) < 3 else f"one of {', '.join(choices)}"


def _number_text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _value_text(value: Any, item: Declared) -> str:
    if isinstance(value, tuple | list):
        return ",".join(_number_text(each) for each in value)
    if item.setting.unit != 1:
        return f"{value / item.setting.unit:g}"
    return f"{value:.0%}" if item.setting.share else _number_text(value)

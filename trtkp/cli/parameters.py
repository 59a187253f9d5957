"""A command's parameters, made from the settings that its function takes.

The function of a command is written with the types that its body wants, and `command` makes the function that typer
sees. A parameter of the function is one of these:

- a setting of the command's own, `Annotated[bool, Setting("...")]`;
- a settings class such as `BuildOptions`, or `Annotated[BuildOptions, Only("backend", ...)]` for some of its settings:
  the body gets an instance;
- `Annotated[dict[str, Any], Given({...})]`, settings of classes or functions by name: the body gets those that were
  given, and the owner's defaults hold for the others. The settings of the pruning methods are taken so.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass
from functools import cached_property, partial
from operator import itemgetter
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from trtkp.errors import InputError
from trtkp.settings import Declared, check_values, nested_settings, settings_of

__all__ = ["HELP_ALL", "MANY", "Given", "Only", "Parameter", "command", "parameters_of"]

#: The parameter of ``--help-all``.
HELP_ALL = "help_all"
#: Commands with more options than this show the essential ones in ``--help``: 45 lines of 80 columns hold no more.
MANY = 14


class Only:
    """Which settings of a class a command takes; those of nested classes by the field that holds them."""

    def __init__(self, *names: str) -> None:
        self.names = names


@dataclass(frozen=True, eq=False)
class Given:
    """Settings of one or several owners, of which the body gets those that were given.

    Attributes:
        owners: settings classes or functions by the names that ``--help`` calls them; "" for a single one.
        chosen_by: the option whose value names an owner; ``--help`` shows an owner's settings when it is chosen.
        trained: whether the command trains; if not, settings of training are refused.
        searches: whether the command searches; if so, the settings that a search chooses are refused.
        only: the settings to take, where not all are.
    """

    owners: Mapping[str, Any]
    chosen_by: str | None = None
    trained: bool = True
    searches: bool = False
    only: tuple[str, ...] | None = None

    def parameters(self) -> Iterator[Parameter]:
        """One parameter for each name, whoever has it; hidden ones for the names that the command refuses."""
        taken: dict[str, dict[str, Declared]] = {}
        refused: dict[str, dict[str, Declared]] = {}
        for label, owner in self.owners.items():
            for name, item in settings_of(owner).items():
                if item.setting.command_line and (self.only is None or name in self.only):
                    into = refused if self._refuses(item) else taken
                    into.setdefault(name, {})[label] = item
        for declared in taken.values():
            yield Parameter(declared, optional=True, chosen_by=self.chosen_by)
        for name, declared in refused.items():
            if name not in taken:
                yield Parameter(declared, optional=True, chosen_by=self.chosen_by, refused=True)

    def _refuses(self, item: Declared) -> bool:
        return (self.searches and item.setting.searched) or (not self.trained and item.setting.trained)


@dataclass(frozen=True)
class Parameter:
    """One option or argument of a command.

    Attributes:
        declared: the setting by owner; several owners where methods share a name.
        optional: None stands for what was not given, and the owner's default holds.
        chosen_by: see `Given`.
        refused: the command does not take it: it is hidden, and an error says what it belongs to. Without the
            parameter, typer would say that there is no such option.
    """

    declared: Mapping[str, Declared]
    optional: bool = False
    chosen_by: str | None = None
    refused: bool = False

    @cached_property
    def first(self) -> Declared:
        """The declaration that type and spelling come from."""
        return next(iter(self.declared.values()))

    @property
    def name(self) -> str:
        """Of the parameter of the function that typer sees: the flag, or the setting's name for an argument."""
        return self.first.name if self.first.setting.argument else self.first.flag.lstrip("-").replace("-", "_")

    @property
    def is_switch(self) -> bool:
        """Whether it is on or off."""
        return self.first.plain is bool

    @property
    def spellings(self) -> tuple[str, ...]:
        """What typer declares: the flag, or both flags of a switch, and the short one."""
        setting, flag = self.first.setting, self.first.flag
        if setting.flag is not None and "/" in setting.flag:
            flag = setting.flag
        elif self.is_switch and not setting.negated and (self.chosen_by is not None or self.first.default is True):
            flag = f"{flag}/--no-{flag.removeprefix('--')}"
        return (flag, setting.short) if setting.short is not None else (flag,)

    @property
    def essential(self) -> bool:
        """Whether the plain ``--help`` of a command with many options shows it."""
        return self.first.setting.essential or self.first.setting.argument or self.is_required

    @property
    def is_required(self) -> bool:
        """Whether it must be given."""
        return not self.optional and self.first.default is MISSING

    def help(self, owner: str | None = None) -> str:
        """Meaning, choices and default: of one owner, or of all where they differ."""
        if owner is not None:
            return _help(self.declared[owner])
        owners: dict[str, list[str]] = {}
        for label, item in self.declared.items():
            owners.setdefault(_help(item), []).append(label)
        return " ".join(f"{', '.join(labels)}: {text}" if all(labels) else text for text, labels in owners.items())

    def signature(self) -> inspect.Parameter:
        """The parameter as typer reads it."""
        setting = self.first.setting
        if setting.argument:
            note: Any = typer.Argument(help=self.help(), metavar=setting.metavar, show_default=False, readable=False)
        else:
            note = typer.Option(
                *self.spellings,
                readable=False,  # whoever reads a file says what to do if it cannot be
                help=self.help(),
                metavar=self._metavar,
                show_default=False,
                rich_help_panel=setting.group,
                hidden=self.refused,
            )
        default = inspect.Parameter.empty if self.is_required else self._default()
        return inspect.Parameter(
            self.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[self._annotation(), note]
        )

    def value(self, given: Any) -> Any:
        """The setting's value from what typer read.

        Raises:
            InputError: a setting that the command refuses, a text that is no list of numbers or no share, or a value
                that the setting does not take.
        """
        item, setting = self.first, self.first.setting
        if given is None:
            return None if self.optional or item.default is MISSING else item.default
        if self.refused:
            raise self._refusal()
        if setting.none is not None and str(given) == setting.none:
            return None
        if item.item is str or item.item is Path:
            return list(given) if get_origin(item.plain) is list else tuple(given)
        if item.item is not None:
            return _numbers(given, item)
        if setting.share:
            return _share(given, item)
        if setting.unit != 1:
            return _in_units(given, item)
        return not given if setting.negated else given

    @property
    def _metavar(self) -> str | None:
        """What stands for the value in ``--help``: nothing for a switch; None for typer's own, such as <int>."""
        if self.first.setting.metavar is not None:
            return self.first.setting.metavar
        if self.is_switch:
            return ""
        if self.first.item is Path:
            return "path..."
        return "numbers" if self.first.item in (int, float) else None

    def _refusal(self) -> InputError:
        flag = self.first.flag
        if self.first.setting.searched:
            return InputError(f"the search chooses {flag}", remedy="leave it out")
        return InputError(
            f"{flag} is a setting of training with {' or '.join(self.declared)}", remedy="use trtkp prune"
        )

    def _default(self) -> Any:
        item = self.first
        # typer reads texts where the setting is a list or a share; what was not given keeps the setting's default
        if self.optional or item.item is not None or item.setting.share or item.setting.unit != 1:
            return None
        return not item.default if item.setting.negated else item.default

    def _annotation(self) -> Any:
        item = self.first
        if self.refused and not self.is_switch:
            return str | None  # refused whatever its value is
        if item.item is str or item.item is Path:
            kind: Any = list[item.item]  # type: ignore[name-defined]  # a type by then
        elif item.item is not None or item.setting.share:
            kind = str
        elif item.setting.unit != 1:
            kind = float
        elif item.plain in (bool, int, float, Path):
            kind = item.plain
        elif PathLike in {get_origin(part) for part in get_args(item.kind)}:
            kind = Path
        else:
            kind = str
        return kind if self.is_required or self._default() is not None else kind | None


def command(function: Callable[..., None]) -> Callable[..., None]:
    """The function that typer sees: a parameter for every setting; values are checked before the body runs."""
    hints = get_type_hints(function, include_extras=True)
    slots = [_Slot.of(each, hints[each.name], function) for each in inspect.signature(function).parameters.values()]
    parameters = [parameter for slot in slots for parameter in slot.parameters]
    _check_names(function, parameters)

    def run(**given: Any) -> None:
        function(**{slot.name: slot.take(given) for slot in slots})

    passed = [slot.passed for slot in slots if slot.passed is not None]
    if sum(not each.refused for each in parameters) > MANY:
        passed.append(_help_all())
    run.__name__, run.__doc__ = function.__name__, function.__doc__
    run.__signature__ = inspect.Signature([*(each.signature() for each in parameters), *passed])  # type: ignore[attr-defined]
    run.parameters = {each.name: each for each in parameters}  # type: ignore[attr-defined]
    run.__annotations__ = {}
    return run


def _check_names(function: Callable[..., None], parameters: Sequence[Parameter]) -> None:
    """Check that every option of a command has one meaning. Methods may share a name, for values of one type.

    Raises:
        TypeError: with the option, and the classes that declare it.
    """
    owners: dict[str, str] = {}
    for each in parameters:
        owner = ", ".join(sorted({item.owner.__name__ for item in each.declared.values()}))
        if each.name in owners:
            raise TypeError(
                f"trtkp {function.__name__}: {owners[each.name]} has an option {each.first.flag}, so has {owner}; "
                "rename one of them"
            )
        if len({item.plain for item in each.declared.values()}) > 1:
            raise TypeError(f"trtkp {function.__name__}: {each.first.flag} has another type in each of {owner}")
        owners[each.name] = owner


def _help_all() -> inspect.Parameter:
    note = typer.Option("--help-all", help="Show all options and exit.", metavar="", is_eager=True, callback=_show_all)
    return inspect.Parameter(HELP_ALL, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, note])


def _show_all(context: typer.Context, wanted: bool) -> None:
    if wanted:
        typer.echo(context.get_help())
        raise typer.Exit


def parameters_of(function: Callable[..., Any] | None) -> dict[str, Parameter]:
    """The parameters of a function that `command` made, by the names that typer knows them by."""
    return getattr(function, "parameters", {})


@dataclass(frozen=True)
class _Slot:
    """A parameter of a command's function: what it takes from the command line, and how it is made of that."""

    name: str
    parameters: tuple[Parameter, ...]
    take: Callable[[Mapping[str, Any]], Any]
    passed: inspect.Parameter | None = None

    @classmethod
    def of(cls, parameter: inspect.Parameter, hint: Any, function: Any) -> _Slot:
        """Raises `TypeError` for a parameter that is nothing of what this module's docstring lists."""
        notes = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
        kind = get_args(hint)[0] if notes else hint
        own = settings_of(function)
        if parameter.name in own:
            item = own[parameter.name]
            one = Parameter({"": item})
            return cls(parameter.name, (one,), partial(_own, one))
        for note in notes:
            if isinstance(note, Given):
                taken = tuple(note.parameters())
                return cls(parameter.name, taken, partial(_given, taken))
        if isinstance(kind, type) and issubclass(kind, typer.Context):
            passed = inspect.Parameter(parameter.name, inspect.Parameter.KEYWORD_ONLY, annotation=kind)
            return cls(parameter.name, (), itemgetter(parameter.name), passed)
        if not (isinstance(kind, type) and settings_of(kind)):
            raise TypeError(f"{function.__name__}: parameter {parameter.name} is no setting and no settings class")
        only = next((note.names for note in notes if isinstance(note, Only)), None)
        fields = _fields_of(kind, only)
        return cls(parameter.name, tuple(_flat(fields)), partial(_instance, kind, fields))


#: Field of a settings class to its parameter, or to the fields of a nested settings class.
_Fields = dict[str, Any]


def _fields_of(kind: Any, only: Sequence[str] | None) -> _Fields:
    fields: _Fields = {
        name: Parameter({"": item})
        for name, item in settings_of(kind).items()
        if item.setting.command_line and (only is None or name in only)
    }
    for name, inner in nested_settings(kind).items():
        if (only is None or name in only) and (within := _fields_of(inner, None)):
            fields[name] = (inner, within)
    return fields


def _flat(fields: _Fields) -> Iterator[Parameter]:
    for each in fields.values():
        if isinstance(each, Parameter):
            yield each
        else:
            yield from _flat(each[1])


def _instance(kind: Any, fields: _Fields, given: Mapping[str, Any]) -> Any:
    return kind(
        **{
            name: each.value(given[each.name]) if isinstance(each, Parameter) else _instance(each[0], each[1], given)
            for name, each in fields.items()
        }
    )


def _given(parameters: Sequence[Parameter], given: Mapping[str, Any]) -> dict[str, Any]:
    values = {each.first.name: each.value(given[each.name]) for each in parameters}
    return {name: value for name, value in values.items() if value is not None}


def _own(parameter: Parameter, given: Mapping[str, Any]) -> Any:
    value = parameter.value(given[parameter.name])
    check_values(parameter.first.owner, {parameter.first.name: value})
    return value


def _help(item: Declared) -> str:
    text, choices = item.setting.help, item.choices
    if any(choice not in text for choice in choices):
        text = f"{text} One of {', '.join(choices)}."
    default = item.default_text
    if default is None and item.default is True and not item.setting.negated:
        default = "on"
    return text if default is None else f"{text} (default: {default})"


def _numbers(text: str, item: Declared) -> tuple[Any, ...]:
    """``"0.485,0.456,0.406"`` as numbers."""
    whole = item.item is int
    try:
        values = tuple((int if whole else float)(part) for part in text.split(","))
    except ValueError:
        kind, example = ("whole numbers", "1,8,32") if whole else ("numbers", "0.5,0.25")
        raise InputError(
            f"{item.flag} {text}: not {kind} separated by commas", remedy=f"write {item.flag} {example}"
        ) from None
    return values


def _share(text: str, item: Declared) -> float:
    """``60%`` or ``0.6``."""
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise InputError(f"{item.flag} {text}: not a share", remedy="write it as 60%") from None


def _in_units(value: float, item: Declared) -> int:
    if not value > 0 or not math.isfinite(value) or value >= 1 << 30:
        raise InputError(f"{item.flag} {value:g}: out of range", remedy="give more than 0")
    return max(1, int(value * item.setting.unit))

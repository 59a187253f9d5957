"""The reference of all commands and their options, in Markdown; from the same declarations as ``--help``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trtkp.cli.app import COMMANDS, load_command
from trtkp.cli.parameters import HELP_ALL, Parameter, parameters_of
from trtkp.settings import Declared, type_name

__all__ = ["reference"]

_HEADER = ("| Option | Value | Default | Meaning |", "|---|---|---|---|")


def reference(level: int = 2) -> str:
    """Every command with its arguments and options.

    Args:
        level: of the commands' headings; the groups of options are one below.
    """
    return "\n".join(line for name in COMMANDS for line in _command(name, level))


def _command(name: str, level: int) -> Iterator[str]:
    command = load_command(name)
    known = parameters_of(command.callback)
    arguments = [each for each in known.values() if each.first.setting.argument]
    yield f"{'#' * level} trtkp {name}"
    yield ""
    yield from (f"{command.help}", "", "```text", f"trtkp {name} {_usage(command, arguments)}", "```", "")
    for argument in arguments:
        yield f"- `{argument.name}`: {argument.help()}"
    if arguments:
        yield ""
    for heading, rows in _groups(command, known).items():
        yield from (f"{'#' * (level + 1)} {heading}", "", *_HEADER, *rows, "")


def _usage(command: Any, arguments: list[Parameter]) -> str:
    required = [f"{each.spellings[0]} {each.name.upper()}" for each in parameters_of(command.callback).values()
                if each.is_required and not each.first.setting.argument]  # fmt: skip
    names = [f"{each.name.upper()}..." if each.first.item is not None else each.name.upper() for each in arguments]
    return " ".join([*names, *required, "[OPTIONS]"])


def _groups(command: Any, known: dict[str, Parameter]) -> dict[str, list[str]]:
    """Heading to the rows below it: the groups of ``--help-all``, then the settings of every method."""
    groups: dict[str, list[str]] = {"Options": []}
    methods: dict[str, list[str]] = {}
    for param in command.params:
        parameter = known.get(str(param.name))
        if parameter is None:
            if param.name == HELP_ALL:
                groups["Options"].append(f"| `--help-all` | | | {param.help} |")
            continue
        if parameter.first.setting.argument or parameter.refused:
            continue
        for label, item in parameter.declared.items():
            if parameter.chosen_by:
                methods.setdefault(f"Settings of {parameter.chosen_by} {label}", []).append(_row(param, item))
            else:
                groups.setdefault(item.setting.group or "Options", []).append(_row(param, item))
    groups["Options"].append("| `--help`, `-h` | | | Show this message and exit. |")
    return groups | methods


def _row(param: Any, item: Declared) -> str:
    spellings = ", ".join(f"`{flag}`" for flag in (*param.opts, *param.secondary_opts))
    limits = " or ".join(item.choices) or " ".join(part for part in (type_name(item), item.setting.bounds) if part)
    value = "" if item.plain is bool else limits
    default = item.default_text or ("on" if item.default is True and not item.setting.negated else "")
    return f"| {spellings} | {_cell(value)} | {_cell(default)} | {_cell(item.setting.help)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")

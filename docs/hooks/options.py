"""``reference/options.md``: the options of every command, read off the program itself."""

from __future__ import annotations

from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from trtkp.cli.app import app

_HEAD = """# Command line options

`trtkp COMMAND --help` prints the same. Every command also takes `--debug`, which adds the traceback to an error.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page."""
    files.append(File.generated(config, "reference/options.md", content=page()))
    return files


def page() -> str:
    """A section for each command, in the order of ``trtkp --help``."""
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return "\n".join([_HEAD, *(_section(name, command) for name, command in commands.items() if not command.hidden)])


def _section(name: str, command: Any) -> str:
    shown = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
    arguments = [parameter for parameter in shown if parameter.param_type_name == "argument"]
    panels: dict[str, list[Any]] = {}
    for option in (parameter for parameter in shown if parameter.param_type_name == "option"):
        panels.setdefault(getattr(option, "rich_help_panel", None) or "Options", []).append(option)
    usage = " ".join(["trtkp", name, "[OPTIONS]", *(_placeholder(argument) for argument in arguments)])
    lines = [f"## trtkp {name}", "", command.help or "", "", "```", usage, "```", ""]
    if arguments:
        lines += _table("argument", [(argument.name.upper(), argument) for argument in arguments])
    for panel, options in panels.items():
        lines += [] if len(panels) == 1 else [f"**{panel}**", ""]
        lines += _table("option", [(_names(option), option) for option in options])
    return "\n".join(lines)


def _placeholder(argument: Any) -> str:
    name = argument.name.upper() + ("..." if argument.nargs != 1 else "")
    return name if argument.required else f"[{name}]"


def _names(option: Any) -> str:
    names = ", ".join(sorted(option.opts, key=len))
    if option.secondary_opts:
        return f"{names} / {', '.join(option.secondary_opts)}"
    return names if option.is_flag else f"{names} {option.metavar or option.name.upper()}"


def _table(kind: str, rows: list[tuple[str, Any]]) -> list[str]:
    body = [f"| `{name}` | {_cell(parameter)} |" for name, parameter in rows]
    return [f"| {kind} | meaning |", "|---|---|", *body, ""]


def _cell(parameter: Any) -> str:
    text = (parameter.help or "").replace("|", "\\|").replace("\n", " ")
    default = parameter.default
    if parameter.required:
        text += " **Required.**"
    elif parameter.show_default and default not in (None, (), [], "") and not isinstance(default, bool):
        text += f" (default: {default})"
    return text

"""What ``--help`` shows: the essential options; with ``--method`` that method's settings; with ``--help-all`` all."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from typer.core import TyperCommand

from trtkp.cli.parameters import HELP_ALL, MANY, Parameter, parameters_of

__all__ = ["Command"]


class Command(TyperCommand):
    """A command whose function `trtkp.cli.parameters.command` made."""

    #: The options on the line as they were read: ``--help`` ends a command before it gets their values.
    _read: dict[str, Any]

    def get_help_option(self, ctx: Any) -> Any:
        """``--help`` itself; as for other switches, nothing stands for a value."""
        found = super().get_help_option(ctx)
        if found is not None:
            found.metavar = ""
        return found

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Note what was given, for the help."""
        try:
            self._read = self.make_parser(ctx).parse_args(args=list(args))[0]
        except Exception:
            self._read = {}  # what is wrong with the line, the real parsing says
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the options that were asked for."""
        known = {name: each for name, each in parameters_of(self.callback).items() if not each.refused}
        if self._read.get(HELP_ALL) or len(known) <= MANY:
            super().format_help(ctx, formatter)
            return
        shown = copy.copy(self)
        shown.params = list(self._shown(known))
        shown.epilog = self._more(known)
        super(Command, shown).format_help(ctx, formatter)

    def _shown(self, known: dict[str, Parameter]) -> Iterator[Any]:
        chosen = any(each.chosen_by and self._read.get(each.chosen_by) in each.declared for each in known.values())
        for param in self.params:
            if getattr(param, "hidden", False):
                continue
            parameter = known.get(str(param.name))
            owner = self._read.get(parameter.chosen_by) if parameter is not None and parameter.chosen_by else None
            if parameter is not None and owner in parameter.declared:
                yield _of_owner(param, parameter, str(owner))
            elif parameter is None or parameter.is_required or (parameter.essential and not chosen):
                yield param

    def _more(self, known: dict[str, Parameter]) -> str:
        """How to see the other options."""
        choice = next((each.chosen_by for each in known.values() if each.chosen_by), None)
        if choice is None or self._read.get(choice) is not None:
            return "All options: --help-all."
        return f"All options: --help-all. The settings of a {choice}: --{choice} vskp --help."


def _of_owner(param: Any, parameter: Parameter, owner: str) -> Any:
    """An option as the settings of one owner show it; the spelling that switches off takes no column of its own."""
    own = copy.copy(param)
    own.help, own.rich_help_panel = parameter.help(owner), f"Settings of {owner}"
    if own.secondary_opts:
        if parameter.declared[owner].default is True:
            own.help += f" Off with {own.secondary_opts[0]}."
        own.secondary_opts = []
    return own

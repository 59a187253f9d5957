"""``trtkp doctor``: what this machine can build and run with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.markup import escape

from trtkp.cli.arguments import Json
from trtkp.cli.console import console, document, plain_table
from trtkp.cli.parameters import command

if TYPE_CHECKING:
    from trtkp.engine.doctor import Finding

__all__ = ["doctor"]

_STATUS = {"ok": "[green]ok[/]", "missing": "[yellow]missing[/]", "unavailable": "[dim]unavailable[/]"}


@command
def doctor(json: Json = False) -> None:
    """Show what this machine can build and run with, and what to do about the rest."""
    from trtkp.engine.doctor import doctor as find

    _show(find(), json=json)


def _show(findings: Sequence[Finding], *, json: bool) -> None:
    """What was found on this machine."""
    if json:
        document({"checks": [asdict(finding) for finding in findings]})
        return
    table = plain_table(("what", "status", "version"))
    table.add_column("detail", overflow="fold")
    for finding in findings:
        detail = escape(finding.detail) + (f" [dim]→ {escape(finding.remedy)}[/]" if finding.remedy else "")
        table.add_row(finding.name, _STATUS[finding.status], finding.version or "", detail)
    console().print(table)

"""``trtkp verify``: check every artefact of a bundle."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from trtkp.cli.arguments import BundlePath, Json
from trtkp.cli.console import console, document, error, plain_table, progress
from trtkp.cli.parameters import Given, command
from trtkp.cli.totals import score_text
from trtkp.verification.bundle import verify as verify_bundle

if TYPE_CHECKING:
    from trtkp.verification.bundle import VerificationReport

__all__ = ["verify"]

_MARK = {"verified": "[green]verified[/]", "failed": "[bold red]FAILED[/]", "not run": "[yellow]not run[/]"}


@command
def verify(
    *,
    bundle: BundlePath,
    settings: Annotated[dict[str, Any], Given({"": verify_bundle})],
    json: Json = False,
) -> None:
    """Check every artefact of a bundle against its reference; exit status 1 when one fails."""
    with progress(quiet=json) as told:
        told("Verify", 0, 1)
        report = verify_bundle(bundle, **settings)
    _show(report, json=json)
    if not report.ok:
        raise typer.Exit(1)


def _show(report: VerificationReport, *, json: bool) -> None:
    """Every check."""
    for check in report.checks:
        if check.status == "failed":
            error(f"{report.bundle}: {check.summary}")
    if report.require_engine and not report.ok and all(check.status != "failed" for check in report.checks):
        error(f"{report.bundle}: the engine was not run, and --require-engine asks for it")
    if json:
        document({**asdict(report), "ok": report.ok, "hint": report.hint})
        return
    table = plain_table(("artefact", "result", "against", "output"), ("relative error", "limit", "max difference"))
    for check in report.checks:
        mark = _MARK[check.status]
        if not check.outputs:
            table.add_row(check.artefact, mark, check.against)
        for name, output in check.outputs.items():
            errors = (f"{output.relative:.2e}", check.limit, f"{output.max_abs:.2e}")
            table.add_row(check.artefact, mark, check.against, escape(name), *errors)
    out = console()
    out.print(table)
    for check in report.checks:
        if check.reason is not None:
            out.print(f"{check.artefact}: {check.status} ({escape(check.reason)})", soft_wrap=True)
    if report.scores is not None:
        out.print(f"{report.precision}: {score_text(report.scores)} (measured when it was built)", soft_wrap=True)
    if report.hint is not None:
        out.print(escape(report.hint), soft_wrap=True)

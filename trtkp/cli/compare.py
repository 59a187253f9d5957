"""``trtkp compare``: engines of one model side by side."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from trtkp.cli.arguments import Json
from trtkp.cli.console import console, document, plain_table, progress
from trtkp.cli.parameters import Given, command
from trtkp.comparison.run import compare as compare_engines
from trtkp.comparison.words import bytes_text
from trtkp.errors import InputError
from trtkp.settings import Setting

if TYPE_CHECKING:
    from rich.table import Table

    from trtkp.comparison import Comparison

__all__ = ["compare", "show"]


@command
def compare(
    *,
    context: typer.Context,
    engines: Annotated[
        list[Path],
        Setting(
            "Two or more bundles, .onnx files or TensorRT engines of one model; the first is the baseline.",
            argument=True,
        ),
    ],
    settings: Annotated[dict[str, Any], Given({"": compare_engines})],
    html: Annotated[
        Path | None, Setting("Write a report: one HTML file that needs no network.", essential=True)
    ] = None,
    csv: Annotated[
        Path | None, Setting("Write a CSV file with a row for each engine and batch size.", essential=True)
    ] = None,
    json: Json = False,
) -> None:
    """Compare engines: speed with its confidence interval, outputs, accuracy, size, memory and time layer by layer."""
    from trtkp.comparison.files import check_target
    from trtkp.comparison.report import check_packages, write_report
    from trtkp.comparison.table import csv_text
    from trtkp.files import write_file

    written = [path for path in (csv, html) if path is not None]
    for path in written:
        check_target(path, engines)
    if len({path.resolve() for path in written}) < len(written):
        raise InputError("--csv and --html name the same file")
    if html is not None:
        check_packages()
    with progress(quiet=json) as report:
        comparison = compare_engines(engines, progress=report, **settings)
    if csv is not None:
        write_file(csv, csv_text(comparison))
    if html is not None:
        write_report(comparison, html, command=shlex.join(["trtkp", *context.obj]))
    show(comparison, written, json=json)


def show(comparison: Comparison, written: Sequence[Path], *, json: bool) -> None:
    """Engines side by side, their times, where the time went, and one sentence for each."""
    from trtkp.comparison.words import verdict

    if json:
        document({**comparison.document(), "written": [str(path) for path in written]})
        return
    out = console()
    out.print(_engine_table(comparison))
    out.print()
    out.print(_latency_table(comparison))
    if any(entry.layers is not None for entry in comparison.entries):
        out.print()
        out.print(_time_table(comparison))
    out.print()
    for entry in comparison.entries[1:]:
        out.print(escape(verdict(comparison, entry)), soft_wrap=True)
    out.print(f"Outputs are compared on {escape(comparison.inputs)}.", soft_wrap=True)
    for entry in comparison.entries:
        for note in entry.notes:
            out.print(f"[yellow]{escape(entry.label)}:[/] {escape(note)}", soft_wrap=True)
    for path in written:
        out.print(f"written: {escape(str(path))} ({bytes_text(path.stat().st_size)})", soft_wrap=True)


def _engine_table(comparison: Comparison) -> Table:
    numbers = (
        "params", "MACs", "density", "index", "paper's", "bytes", "peak memory", "difference", "top-1", "accuracy",
    )  # fmt: skip
    table = plain_table(("engine", "runs on", "precision"), numbers)
    for entry in comparison.entries:
        costs, difference = entry.costs, entry.difference
        table.add_row(
            escape(entry.label),
            entry.backend,
            entry.precision or "-",
            f"{costs.retained_params:,}" if costs else "-",
            f"{costs.retained_macs:,}" if costs else "-",
            f"{costs.density:.3f}" if costs and costs.density is not None else "-",
            bytes_text(costs.index_bytes) if costs else "-",
            bytes_text(costs.paper_index_bytes) if costs and costs.paper_index_bytes is not None else "-",
            bytes_text(entry.engine_bytes),
            bytes_text(entry.memory.peak_bytes) if entry.memory else "-",
            f"{difference.relative:.2e}" if difference else "baseline",
            f"{difference.top1_agreement:.1%}" if difference and difference.top1_agreement is not None else "",
            f"{entry.accuracy:.2%}" if entry.accuracy is not None else "-",
        )
    return table


def _latency_table(comparison: Comparison) -> Table:
    from trtkp.comparison.words import ratio_text

    numbers = ("batch", "median ms", "p10", "p90", "runs", "samples/s", "speed-up (95 %)", "bound")
    table = plain_table(("engine",), numbers)
    for entry in comparison.entries:
        bound = entry.costs.bound if entry.costs is not None else None
        for latency in entry.latencies:
            timing = latency.timing
            table.add_row(
                escape(entry.label),
                str(latency.batch),
                f"{timing.median_ms:.3f}",
                f"{timing.p10_ms:.3f}",
                f"{timing.p90_ms:.3f}",
                str(timing.runs),
                f"{latency.throughput:,.0f}",
                "baseline" if entry is comparison.baseline else ratio_text(latency.speed_up),
                f"{bound:.2f}x" if bound is not None else "-",
            )
    return table


def _time_table(comparison: Comparison) -> Table:
    """A profiled run by kind of operator."""
    times = [(entry.label, entry.layers) for entry in comparison.entries if entry.layers is not None]
    table = plain_table((f"profiled, ms (batch {times[0][1].batch})",), (*times[0][1].groups, "how many copies"))
    for label, found in times:
        table.add_row(escape(label), *(f"{ms:.3f}" for ms in found.groups.values()), str(found.moves))
    return table

"""The streams that commands write to: tables for people or one JSON document on standard output, the rest on error."""

from __future__ import annotations

import json as jsonlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from trtkp.cli.streams import discard_output

__all__ = ["console", "document", "error", "plain_table", "progress", "warn"]


def console(stderr: bool = False) -> Console:
    """Standard output, or standard error, as they are now."""
    # made at each use: tests and callers exchange sys.stdout
    stream = Console(stderr=stderr, highlight=False)
    if not stream.is_terminal:
        stream.width = max(stream.width, 160)  # a file has no width to fit into
    return stream


def error(message: str) -> None:
    """One line on standard error."""
    _say(f"[bold red]error:[/] {escape(message)}")


def warn(message: str, *, kind: str = "warning") -> None:
    """One line on standard error that is no failure."""
    _say(f"[yellow]{kind}:[/] {escape(message)}")


def _say(line: str) -> None:
    try:
        console(stderr=True).print(line, soft_wrap=True)
    except (OSError, SystemExit):  # nobody reads it, or the disk is full; the work and the status remain what they are
        discard_output()


def plain_table(names: Sequence[str], numbers: Sequence[str] = (), **settings: Any) -> Table:
    """A table without borders: columns of names, then columns of numbers, which are aligned to the right."""
    table = Table(box=None, pad_edge=False, header_style="bold", **settings)
    for heading in names:
        table.add_column(heading, no_wrap=True)
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """A progress display on standard error that is gone at the end; gives the function that feeds it."""
    stream = console(stderr=True)
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=stream,
        transient=True,
        disable=quiet or not stream.is_terminal,
    ) as bars:
        task = bars.add_task("Starting", total=None)

        def report(phase: str, done: int, total: int) -> None:
            bars.update(task, description=phase, completed=done, total=total if total > 1 else None)

        yield report


def document(value: Any) -> None:
    """What ``--json`` asks for."""
    print(jsonlib.dumps(_finite(value), indent=1))  # noqa: T201 - the one document


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity; they become strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value

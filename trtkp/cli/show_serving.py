"""What the serving commands print."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from trtkp.cli.show import console, document

if TYPE_CHECKING:
    from pathlib import Path

    from trtkp.serving.export.triton import TritonRepository
    from trtkp.serving.server.load import LoadResult
    from trtkp.serving.server.serve import Addresses

__all__ = ["exported_to_kserve", "exported_to_triton", "loaded", "serving"]


def serving(addresses: Addresses, *, json: bool) -> None:
    """Where a server that is ready listens."""
    if json:
        document(asdict(addresses))
    else:
        out = console()
        models = ", ".join(f"{name} ({', '.join(versions)})" for name, versions in addresses.models.items())
        grpc = f"  gRPC {addresses.grpc}" if addresses.grpc else ""
        out.print(f"ready: {addresses.http}{grpc}  models and versions: {escape(models)}", soft_wrap=True)
    sys.stdout.flush()  # whoever started the server waits for this line


def loaded(result: LoadResult, *, json: bool) -> None:
    """Latency percentiles, throughput and errors of a server under load."""
    if json:
        document({**asdict(result), "throughput": result.throughput, "rows_per_second": result.rows_per_second})
        return
    how = f"{result.clients} clients" if result.rate is None else f"{result.rate:g} requests/s"
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("loop", "model"):
        table.add_column(heading, no_wrap=True)
    percentiles = [name for name in result.latency_ms if name != "mean"]
    for heading in ("batch", "requests/s", "rows/s", *(f"{name} ms" for name in percentiles), "errors"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_row(
        f"{result.loop}, {how}",
        escape(result.model),
        str(result.batch),
        f"{result.throughput:.0f}",
        f"{result.rows_per_second:.0f}",
        *(f"{result.latency_ms[name]:.2f}" for name in percentiles),
        ", ".join(f"{count} x {kind}" for kind, count in result.errors.items()) or "0",
    )
    console().print(table)
    if result.rate is not None and result.latency_ms and result.lag_ms > 0.5 * result.latency_ms["p99"]:
        warning = f"this program itself sent late (99th percentile {result.lag_ms:.1f} ms): too much load for it"
        console(stderr=True).print(f"[yellow]warning:[/] {warning}", soft_wrap=True)


def exported_to_triton(repository: TritonRepository, *, json: bool) -> None:
    """The repository and the command that serves it."""
    if json:
        document({**asdict(repository), "path": str(repository.path)})
        return
    for note in repository.notes:
        console(stderr=True).print(f"[yellow]note:[/] {escape(note)}", soft_wrap=True)
    models = ", ".join(f"{name} ({', '.join(versions)})" for name, versions in repository.models.items())
    console().print(f"[bold]{escape(str(repository.path))}[/]  models and versions: {escape(models)}", soft_wrap=True)
    console().print(f"  {escape(repository.command)}", soft_wrap=True)


def exported_to_kserve(manifest: dict[str, Any], text: str, output: Path | None, *, json: bool) -> None:
    """The manifest, or where it is."""
    if json:
        document(manifest)
    elif output is None:
        print(text, end="")  # noqa: T201 - for kubectl apply -f -
    else:
        console().print(f"[bold]{escape(str(output))}[/]  kubectl apply -f {escape(str(output))}", soft_wrap=True)

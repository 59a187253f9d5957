"""``trtkp bench``: time bundles against each other, or put a running server under load."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.markup import escape

from trtkp.cli.arguments import Json
from trtkp.cli.console import console, document, plain_table, progress, warn
from trtkp.cli.parameters import Given, command
from trtkp.comparison.bench import bench as bench_bundles
from trtkp.errors import InputError
from trtkp.serving.options import TOKEN_VARIABLE, Clients, Rate
from trtkp.settings import Setting, settings_of

if TYPE_CHECKING:
    from rich.table import Table

    from trtkp.comparison.bench import BenchResult
    from trtkp.serving.server.load import LoadResult

__all__ = ["bench", "show"]


@command
def bench(
    *,
    bundles: Annotated[
        list[Path] | None, Setting("Bundles, timed in turn; the first is the baseline.", argument=True)
    ] = None,
    settings: Annotated[dict[str, Any], Given({"": bench_bundles})],
    load: Annotated[
        str | None, Setting("Put a running server under load: its http://, https:// or grpc:// URL.", group="Load")
    ] = None,
    model: Annotated[str | None, Setting("Name of the model on that server.", group="Load")] = None,
    clients: Clients = 8,
    rate: Rate = None,
    json: Json = False,
) -> None:
    """Time bundles against each other: median, 10th and 90th percentile. With --load, a running server."""
    if load is not None:
        _bench_server(load, model, bundles, clients, rate, settings, json=json)
        return
    with progress(quiet=json) as report:
        report("Bench", 0, 1)
        results = bench_bundles(bundles or [], **settings)
    show(results, json=json)


def _bench_server(
    url: str,
    model: str | None,
    bundles: list[Path] | None,
    clients: int,
    rate: float | None,
    settings: dict[str, Any],
    *,
    json: bool,
) -> None:
    """Load on a running server, in a closed loop or at a rate."""
    if bundles:
        raise InputError("--load times a running server, not bundles", remedy="name its model with --model")
    if model is None:
        raise InputError("--load needs the model's name", remedy="give --model")
    from trtkp.serving.server.start import require_packages

    require_packages()
    from trtkp.serving.server.load import measure_load

    seconds = settings.get("seconds", settings_of(bench_bundles)["seconds"].default)
    with progress(quiet=json) as report:
        report("Load", 0, 1)
        result = measure_load(
            url,
            model,
            batch=settings.get("batch", 1),
            clients=clients,
            rate=rate,
            seconds=seconds,
            token=os.environ.get(TOKEN_VARIABLE),
        )
    _show_load(result, json=json)


def show(results: Sequence[BenchResult], *, json: bool) -> None:
    """Latencies, and the ratio to the first bundle."""
    if json:
        document({"results": [{**asdict(result), "throughput": result.throughput} for result in results]})
        return
    table = plain_table(
        ("bundle", "backend", "precision"),
        ("batch", "threads", "median ms", "p10", "p90", "runs", "samples/s", "speed-up"),
    )
    base = results[0].timing.median_ms
    for result in results:
        timing = result.timing
        table.add_row(
            escape(result.bundle),
            result.backend,
            result.precision,
            str(result.batch),
            str(result.threads or "-"),
            f"{timing.median_ms:.3f}",
            f"{timing.p10_ms:.3f}",
            f"{timing.p90_ms:.3f}",
            str(timing.runs),
            f"{result.throughput:.0f}",
            f"{base / timing.median_ms:.2f}",
        )
    console().print(table)
    if any(result.gpu for result in results):
        console().print(_gpu_table(results))


def _gpu_table(results: Sequence[BenchResult]) -> Table:
    """Medians on the GPU, in the terms of trtexec."""
    numbers = ("H2D", "compute", "D2H", "latency", "p90", "enqueue", "samples/s")
    table = plain_table(("bundle", "CUDA graph"), numbers, title="on the GPU, median ms", title_justify="left")
    for result in results:
        for found in result.gpu:
            parts = (found.h2d, found.gpu, found.d2h, found.latency)
            times = [*(part.median_ms for part in parts), found.latency.p90_ms, found.enqueue.median_ms]
            table.add_row(
                escape(result.bundle), "yes" if found.graphs else "no", *(f"{ms:.3f}" for ms in times),
                f"{found.throughput:.0f}",
            )  # fmt: skip
    return table


def _show_load(result: LoadResult, *, json: bool) -> None:
    """Latency percentiles, throughput and errors of a server under load."""
    if json:
        document({**asdict(result), "throughput": result.throughput, "rows_per_second": result.rows_per_second})
        return
    how = f"{result.clients} clients" if result.rate is None else f"{result.rate:g} requests/s"
    percentiles = [name for name in result.latency_ms if name != "mean"]
    numbers = ("batch", "requests/s", "rows/s", *(f"{name} ms" for name in percentiles), "errors")
    table = plain_table(("loop", "model"), numbers)
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
        warn(warning)

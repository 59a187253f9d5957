"""``trtkp search``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from trtkp.cli import options as opt
from trtkp.cli import show
from trtkp.errors import InputError

if TYPE_CHECKING:
    from trtkp.budget.run import SearchResult

__all__ = ["search"]

_SEARCH = "Search"


def search(
    model: Annotated[
        Path,
        typer.Argument(help="Exported program, state dict or ONNX file; told apart by content.", show_default=False),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Folder for allocation.json, search.json and trade-off.html.", show_default=False
        ),
    ],
    data: opt.Data = None,
    target_latency: Annotated[
        str | None,
        typer.Option(
            "--target-latency", help="Share of the dense net's latency to keep to, 60%.", rich_help_panel=_SEARCH
        ),
    ] = None,
    target_flops: Annotated[
        str | None,
        typer.Option("--target-flops", help="Share of the dense net's MACs to keep to, 50%.", rich_help_panel=_SEARCH),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            "--max-drop",
            help="Points of the untrained score that may be lost; the fastest net wins.",
            rich_help_panel=_SEARCH,
        ),
    ] = None,
    method: Annotated[str, typer.Option("--method", "-m", help="kep or vskp.", rich_help_panel=_SEARCH)] = "vskp",
    ratios: Annotated[
        str, typer.Option("--ratios", help="That a layer may have.", rich_help_panel=_SEARCH)
    ] = "0.25,0.375,0.5,0.625,0.75,0.875",
    filter_groups: Annotated[
        str | None,
        typer.Option("--filter-groups", help="That a layer may have. (default: 64)", rich_help_panel=_SEARCH),
    ] = None,
    channel_blocks: Annotated[
        str | None,
        typer.Option("--channel-blocks", help="That a layer may have. (default: 1)", rich_help_panel=_SEARCH),
    ] = None,
    trials: Annotated[int, typer.Option("--trials", help="Nets to try.", rich_help_panel=_SEARCH)] = 40,
    samples: Annotated[
        int, typer.Option("--samples", help="Inputs to score nets on, spread over the data.", rich_help_panel=_SEARCH)
    ] = 256,
    seed: Annotated[int, typer.Option("--seed", help="Of the search.", rich_help_panel=_SEARCH)] = 0,
    share: opt.Share = None,
    alpha: opt.Alpha = None,
    layers: opt.Include = None,
    skip: opt.Skip = None,
    arch: opt.Arch = None,
    input_shape: opt.InputShape = None,
    trust_pickle: opt.TrustPickle = False,
    minimum: opt.MinShape = None,
    optimum: opt.OptShape = None,
    maximum: opt.MaxShape = None,
    threads: opt.Threads = None,
    json: opt.Json = False,
) -> None:
    """Find a ratio and a granularity for every layer, by measured latency and sensitivity."""
    from trtkp.budget.files import check_output, document, write
    from trtkp.budget.run import SearchOptions, run_search
    from trtkp.machine.packages import require
    from trtkp.pipeline.options import BuildOptions
    from trtkp.pruning.method import Method
    from trtkp.pruning.methods.registry import METHODS

    require("a search", "search", {"optuna": "optuna", "plotly": "plotly", "scipy": "scipy"})
    check_output(output)
    given = {"share": share, "alpha": alpha}
    options = SearchOptions(
        method=method,
        settings={name: value for name, value in given.items() if value is not None},
        ratios=opt.numbers(ratios, "--ratios", 0.0),
        filter_groups=_sizes(filter_groups, "--filter-groups", METHODS.get(method, Method).searched_filter_group),
        channel_blocks=_sizes(channel_blocks, "--channel-blocks", 1),
        target_latency=_share(target_latency, "--target-latency"),
        target_flops=_share(target_flops, "--target-flops"),
        max_drop=max_drop,
        trials=trials,
        samples=samples,
        seed=seed,
    )
    with show.progress(quiet=json) as progress:
        result = run_search(
            model,
            data,
            options,
            state=output,
            options=BuildOptions(
                backend="onnxruntime",
                min=minimum or (),
                opt=optimum or (),
                max=maximum or (),
                input_shape=input_shape or (),
                include=layers or (),
                skip=skip or (),
                threads=threads,
                arch=arch,
                trust_pickle=trust_pickle,
            ),
            progress=progress,
        )
        write(result, output, f"{model.name}, {method}")
    if json:
        show.document(document(result))
        return
    _print(result, model, output)


def _print(result: SearchResult, model: Path, output: Path) -> None:
    from trtkp.budget.files import ALLOCATION, PLOT

    out = show.console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("layer", no_wrap=True)
    table.add_column("pruned", no_wrap=True)
    for heading in ("ms alone", "dense", "MACs", "dense", "error alone"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, choice in result.chosen.items():
        dense = result.choices[name][0]
        table.add_row(
            escape(name), choice.level.label, f"{choice.latency_ms:.3f}", f"{dense.latency_ms:.3f}",
            f"{choice.macs:,}", f"{dense.macs:,}", f"{choice.error**0.5:.3f}",
        )  # fmt: skip
    out.print(table)
    out.print(f"  MACs    {result.found.macs:.1%} of the dense net's, bound {1 / result.found.macs:.2f}x")
    timed = result.measured
    out.print(f"  latency {timed.found_ms:.3f} ms, {timed.share:.1%} of the dense net's {timed.dense_ms:.3f} ms")
    if result.measure is not None:
        out.print(
            f"  {result.measure} {result.found.score:.2%} untrained, {result.dense.score:.2%} dense, both with the "
            f"batch-normalisation statistics of the samples"
        )
    if not result.reached:
        out.print("  [yellow]the latency target was not reached; this is the fastest net found[/]")
    out.print(f"  plot    {escape(str(output / PLOT))}", soft_wrap=True)
    out.print(f"  next    trtkp build {escape(str(model))} --method {result.allocation.method} "
              f"--allocation {escape(str(output / ALLOCATION))} -o ...", soft_wrap=True)  # fmt: skip


def _share(text: str | None, flag: str) -> float | None:
    """``60%`` or ``0.6``.

    Raises:
        InputError: not a share.
    """
    if text is None:
        return None
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise InputError(f"{flag} {text}: not a share", remedy="write it as 60%") from None


def _sizes(text: str | None, flag: str, default: int) -> tuple[int, ...]:
    values = opt.numbers(text, flag, float(default))
    if any(value != int(value) for value in values):
        raise InputError(f"{flag} {text}: not whole numbers")
    return tuple(int(value) for value in values)

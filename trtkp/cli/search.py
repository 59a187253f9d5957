"""``trtkp search``: a ratio and a granularity for every layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.markup import escape

from trtkp.budget.options import SearchOptions
from trtkp.cli.arguments import Json, ModelPath
from trtkp.cli.console import console, document, plain_table, progress
from trtkp.cli.parameters import Given, Only, command
from trtkp.data.options import SAMPLE_FILES
from trtkp.pipeline.options import BuildOptions
from trtkp.pruning.methods.registry import METHODS
from trtkp.settings import Setting

if TYPE_CHECKING:
    from trtkp.budget.run import SearchResult

__all__ = ["search"]


@command
def search(
    *,
    model: ModelPath,
    output: Annotated[
        Path,
        Setting("Folder for the allocation, the record and the plot.", short="-o", essential=True),
    ],
    data: Annotated[
        Path | None,
        Setting(f"Samples to score nets on: {SAMPLE_FILES}.", essential=True),
    ] = None,
    searched: Annotated[dict[str, Any], Given({"": SearchOptions})],
    settings: Annotated[dict[str, Any], Given(METHODS, chosen_by="method", trained=False, searches=True)],
    options: Annotated[
        BuildOptions,
        Only("include", "skip", "arch", "input_shape", "trust_pickle", "min", "opt", "max", "threads"),
    ],
    json: Json = False,
) -> None:
    """Find a ratio and a granularity for every layer, by measured latency and sensitivity."""
    from trtkp.budget.files import document as documented
    from trtkp.budget.search import search as search_model

    chosen = SearchOptions(**searched, settings=settings)
    with progress(quiet=json) as report:
        result = search_model(model, output, options=chosen, data=data, build=options, progress=report)
    if json:
        document(documented(result))
        return
    _show(result, model, output)


def _show(result: SearchResult, model: Path, output: Path) -> None:
    from trtkp.budget.files import ALLOCATION, PLOT

    out = console()
    table = plain_table(("layer", "pruned"), ("ms alone", "dense", "MACs", "dense", "error alone"))
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

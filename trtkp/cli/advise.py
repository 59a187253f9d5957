"""``trtkp advise``: which pruning would pay in which layer, before anything is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape

from trtkp.budget.options import AdviceOptions
from trtkp.cli.arguments import Json, ModelPath
from trtkp.cli.console import console, document, plain_table, progress, warn
from trtkp.cli.parameters import command

if TYPE_CHECKING:
    from trtkp.budget.advise import Advice, Granularity

__all__ = ["advise"]


@command
def advise(*, model: ModelPath, options: AdviceOptions, json: Json = False) -> None:
    """Time, before training, which granularity and density of pruning would pay in which layer on this machine."""
    from trtkp.budget.advise import advise as advise_on

    with progress(quiet=json) as report:
        advice = advise_on(model, options, report)
    _show(advice, json=json)


def _show(advice: Advice, *, json: bool) -> None:
    """What pruning could gain: a row for every layer and granularity that pays, the recommended one marked."""
    if json:
        document(advice.model_dump(mode="json"))
        return
    out = console()
    where = f"batch {advice.batch}, {advice.threads} threads, {advice.machine}"
    out.print(f"[bold]{escape(advice.model)}[/]  {escape(where)}")
    table = plain_table(("layer", "F x C x R x S", "output"), ("dense ms", "share"))
    table.add_column("lists", no_wrap=True)
    for density in advice.densities:
        table.add_column(f"{density:.0%} kept", justify="right", no_wrap=True)
    for name, layer in advice.layers.items():
        head = (
            escape(name), " x ".join(map(str, layer.shape)), "x".join(map(str, layer.output_size)),
            f"{layer.dense_ms:.3f}" if layer.dense_ms is not None else "",
            f"{layer.share:.1%}" if layer.share is not None else "",
        )  # fmt: skip
        rows: dict[Granularity, list[str]] = {}
        for option in layer.options:
            rows.setdefault(option.granularity, []).append(f"{option.speed_up:.2f}x" if option.speed_up > 1 else "-")
        for granularity, gains in rows.items():
            lists = _granularity_text(granularity, layer.shape[0])
            marked = f"[bold green]{lists}[/]" if granularity == layer.recommended else lists
            table.add_row(*head, marked, *gains)
            head = ("", "", "", "", "")
        if layer.reason is not None:
            table.add_row(*head, f"[dim]{escape(layer.reason)}[/]")
    out.print(table)
    out.print("Speed-up of the layer against dense; green: the finest lists that gain nearly as much as the best.")
    for warning in advice.warnings:
        warn(warning)


def _granularity_text(granularity: Granularity, filters: int) -> str:
    whose = "the layer" if granularity.filter_group >= filters else f"{granularity.filter_group} filters"
    return f"kernels, one list for {whose}" if granularity.kind == "kernel" else f"stripes, one box for {whose}"

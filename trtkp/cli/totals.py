"""What several commands print of a bundle or a pruned model: parameters, MACs, index sets, plan, quantisation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from trtkp.cli.console import plain_table
from trtkp.comparison.words import bytes_text

if TYPE_CHECKING:
    from rich.console import Console

    from trtkp.bundle import Bundle
    from trtkp.bundle.manifest import TotalsRecord

__all__ = [
    "before_after",
    "bound",
    "headline",
    "index_text",
    "plan_text",
    "print_paper",
    "print_quantisation",
    "print_totals",
    "rewrites",
    "score_text",
]


def print_totals(out: Console, bundle: Bundle) -> None:
    """Parameters, index sets, MACs and the bound."""
    totals = bundle.manifest.totals
    out.print(f"  params {before_after(totals.dense_params, totals.retained_params)}, {index_text(bundle)}")
    out.print(f"  MACs   {before_after(totals.dense_macs, totals.retained_macs)}, bound {bound(totals)}")


def headline(bundle: Bundle) -> str:
    """Method, backend, precision and profile."""
    manifest = bundle.manifest
    profile = ", ".join(
        f"{name} {'x'.join(map(str, limits['min']))}..{'x'.join(map(str, limits['max']))}"
        for name, limits in manifest.profile.items()
    )
    return f"{manifest.method} for {manifest.backend} {manifest.precision}, {escape(profile)}"


def print_quantisation(out: Console, bundle: Bundle, *, layers: bool) -> None:
    """How many layers are quantised and what it costs; with ``layers`` every layer's precision."""
    record, kind = bundle.manifest.quantisation, bundle.manifest.precision
    if record is None:
        return
    kept = sum(choice.precision == kind for choice in record.layers.values())
    method = record.method if record.percentile is None else f"{record.method} {record.percentile:g}"
    out.print(f"  {kind}   {kept} of {len(record.layers)} layers, the rest {record.fallback}; ranges by {method}")
    out.print(f"         {score_text(record.scores.model_dump())}", soft_wrap=True)
    if record.floating is not None and record.quantised is not None:
        out.print(
            f"         whole net {record.floating.median_ms:.3f} ms before, {record.quantised.median_ms:.3f} ms {kind}"
        )
    if not layers:
        return
    table = plain_table(("layer", "precision"), ("error alone",))
    table.add_column("why", overflow="fold")
    for name, choice in record.layers.items():
        error = f"{choice.error:.2e}" if choice.error is not None else ""
        table.add_row(escape(name), choice.precision, error, escape(choice.reason or ""))
    out.print(table)


def score_text(scores: dict[str, Any]) -> str:
    """What quantisation cost: the score before and after, and the error of the outputs."""
    error = f"relative error {scores['error']:.2e} on {scores['samples']} samples"
    if scores["measure"] is None:
        return error
    return (
        f"{scores['measure']} {scores['floating']:.2%} before, {scores['kept']:.2%} after (drop {scores['drop']:.2f}, "
        f"{scores['max_drop']:g} allowed; every layer quantised {scores['all_quantised']:.2%}), {error}"
    )


def before_after(before: int, after: int) -> str:
    """A count before and after, with the change."""
    return f"{before:,} → {after:,} ({after / before - 1:+.1%})" if before else "0"


def bound(totals: Any) -> str:
    """The most that the MACs left allow, 1/density."""
    return f"{totals.dense_macs / totals.retained_macs:.2f}x" if totals.retained_macs else "none"


def print_paper(out: Console, totals: TotalsRecord) -> None:
    """The totals as the paper of the method counts them, where it has a count of its own."""
    counts = totals.as_in_paper
    while counts is not None:
        params = before_after(counts.dense_params, counts.retained_params)
        flops = before_after(counts.dense_flops, counts.retained_flops)
        out.print(f"  as in the paper ({counts.counting}): params {params}, FLOPs {flops}", soft_wrap=True)
        counts = counts.other


def index_text(bundle: Bundle) -> str:
    """Bytes of the index sets."""
    totals = bundle.manifest.totals
    paper = f" (as in the paper {bytes_text(totals.paper_index_bytes)})" if totals.paper_index_bytes is not None else ""
    return f"index sets {bytes_text(totals.index_bytes)}{paper}"


def plan_text(bundle: Bundle) -> str:
    """How many layers each lowering computes, and the times of the whole net."""
    plan = bundle.manifest.plan
    chosen = [layer.lowering for layer in bundle.manifest.layers if layer.lowering is not None]
    counts = ", ".join(f"{chosen.count(name)} {name}" for name in sorted(set(chosen))) or "nothing packed"
    times = (
        f"; whole net {plan.dense.median_ms:.3f} ms dense, {plan.planned.median_ms:.3f} ms planned"
        if plan.dense is not None and plan.planned is not None
        else ""
    )
    return f"{plan.status}: {counts}{times}"


def rewrites(bundle: Bundle) -> Iterator[str]:
    """What was removed from the engine's graph, and what was folded."""
    dead, gathers = bundle.manifest.plan.dead, bundle.manifest.plan.gathers
    if dead is not None and dead.layers:
        yield (
            f"  dead   removed {dead.filters:,} filters and {dead.channels:,} channels that were read: "
            f"{dead.params:,} params, {dead.macs:,} MACs of the dense net"
        )
    if gathers is not None and gathers.before > 0:
        yield f"  copies {gathers.before} Gathers of channels, {gathers.after} left after folding"

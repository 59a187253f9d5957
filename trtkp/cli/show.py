"""What the commands print: tables for people on standard output, or one JSON document; the rest on standard error."""

from __future__ import annotations

import json as jsonlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from trtkp.comparison.words import bytes_text

if TYPE_CHECKING:
    from pathlib import Path

    from trtkp.budget.advise import Advice, Granularity
    from trtkp.bundle import Bundle, LayerRecord
    from trtkp.bundle.manifest import TotalsRecord
    from trtkp.bundle.pruned import Pruned
    from trtkp.comparison import Comparison
    from trtkp.comparison.bench import Result
    from trtkp.engine.doctor import Check as Finding
    from trtkp.verification.bundle import Report

__all__ = [
    "advised",
    "benched",
    "built",
    "compared",
    "console",
    "diagnosed",
    "document",
    "error",
    "inspected",
    "progress",
    "pruned",
    "verified",
    "weighed",
]

_MARK = {"verified": "[green]verified[/]", "failed": "[bold red]FAILED[/]", "not run": "[yellow]not run[/]"}
_STATUS = {"ok": "[green]ok[/]", "missing": "[yellow]missing[/]", "unavailable": "[dim]unavailable[/]"}


def console(stderr: bool = False) -> Console:
    """Standard output, or standard error, as they are now."""
    # made at each use: tests and callers exchange sys.stdout
    stream = Console(stderr=stderr, highlight=False)
    if not stream.is_terminal:
        stream.width = max(stream.width, 160)  # a file has no width to fit into
    return stream


def error(message: str) -> None:
    """One line on standard error."""
    console(stderr=True).print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)


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


def built(bundle: Bundle, *, json: bool) -> None:
    """What ``build`` made."""
    manifest = bundle.manifest
    if json:
        document({"bundle": str(bundle.path), **manifest.model_dump(mode="json")})
        return
    out = console()
    totals = manifest.totals
    out.print(f"[bold]{escape(str(bundle.path))}[/]  {_headline(bundle)}")
    out.print(f"  params {_before_after(totals.dense_params, totals.retained_params)}, {_index_text(bundle)}")
    out.print(f"  MACs   {_before_after(totals.dense_macs, totals.retained_macs)}, bound {_bound(totals)}")
    if manifest.accuracy is not None:
        out.print(f"  accuracy {manifest.accuracy['dense']:.2%} dense, {manifest.accuracy['pruned']:.2%} pruned")
    _print_quantisation(out, bundle, layers=False)
    out.print(f"  plan   {_plan_text(bundle)}")
    for line in _rewrites(bundle):
        out.print(line)
    engine = manifest.files.get("model.engine", manifest.files["engine.onnx"])
    out.print(f"  engine {bytes_text(engine.bytes)}{_targets(bundle)}, built in {sum(manifest.seconds.values()):.1f} s")
    for warning in manifest.warnings:
        console(stderr=True).print(f"[yellow]warning:[/] {escape(warning)}", soft_wrap=True)


def pruned(pruned: Pruned, *, json: bool) -> None:
    """What ``prune`` left."""
    manifest = pruned.manifest
    if json:
        document({"pruned": str(pruned.path), **manifest.model_dump(mode="json")})
        return
    out = console()
    totals = manifest.totals
    out.print(f"[bold]{escape(str(pruned.path))}[/]  {manifest.method}, {len(manifest.layers)} layers pruned")
    paper = "" if totals.paper_index_bytes is None else f" (as in the paper {bytes_text(totals.paper_index_bytes)})"
    out.print(f"  params {_before_after(totals.dense_params, totals.retained_params)}, "
              f"index sets {bytes_text(totals.index_bytes)}{paper}")  # fmt: skip
    out.print(f"  MACs   {_before_after(totals.dense_macs, totals.retained_macs)}, bound {_bound(totals)}")
    _print_paper(out, totals)
    if manifest.accuracy is not None:
        out.print("  accuracy " + ", ".join(f"{value:.2%} {name}" for name, value in manifest.accuracy.items()))
    if "points" in manifest.report:
        _print_points(out, manifest.report["points"], totals)
    for warning in manifest.warnings:
        console(stderr=True).print(f"[yellow]warning:[/] {escape(warning)}", soft_wrap=True)


def inspected(bundle: Bundle, *, json: bool) -> None:
    """Every layer, and the totals."""
    manifest = bundle.manifest
    if json:
        document({"bundle": str(bundle.path), **manifest.model_dump(mode="json")})
        return
    out = console()
    settings = ", ".join(f"{key} {value}" for key, value in manifest.settings.items() if value is not None)
    out.print(f"[bold]{escape(str(bundle.path))}[/]  {_headline(bundle)}")
    out.print(
        f"  method {manifest.method}{f' ({settings})' if settings else ''}, source {escape(manifest.source.file)}",
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("layer", "kind", "F x C x R x S", "output"):
        table.add_column(heading, no_wrap=True)
    for heading in ("density", "params", "MACs", "index"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("form")
    table.add_column("why", overflow="fold")
    for layer in manifest.layers:
        table.add_row(*_layer_row(layer))
    for name, reason in manifest.left_out.items():
        kind = "dynamic" if "DynamicPattern" in reason else "dense"
        table.add_row(escape(name), kind, "", "", "", "", "", "", kind, escape(reason))
    out.print(table)
    totals = manifest.totals
    out.print(f"  params {_before_after(totals.dense_params, totals.retained_params)}, {_index_text(bundle)}")
    out.print(f"  MACs   {_before_after(totals.dense_macs, totals.retained_macs)}, bound {_bound(totals)}")
    _print_paper(out, totals)
    _print_quantisation(out, bundle, layers=True)
    out.print(f"  plan   {_plan_text(bundle)}")
    for line in _rewrites(bundle):
        out.print(line)
    out.print("  files  " + ", ".join(f"{name} {bytes_text(record.bytes)}" for name, record in manifest.files.items()))
    for warning in manifest.warnings:
        out.print(f"  [yellow]warning:[/] {escape(warning)}", soft_wrap=True)


def weighed(bundle: Bundle) -> None:
    """Every form of every packed layer: its time, or its predicted share of the dense time, or why it was left out."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("layer", no_wrap=True)
    table.add_column("form", no_wrap=True)
    for heading in ("median ms", "p10", "p90", "of dense"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("why", overflow="fold")
    for layer in bundle.manifest.layers:
        name = layer.name
        if layer.lowering is not None and not layer.candidates:  # asked for, not weighed
            table.add_row(escape(name), f"[bold green]{layer.lowering}[/]", "", "", "", "", escape(layer.why or ""))
            name = ""
        for form, cost in layer.candidates.items():
            times = [f"{ms:.3f}" for ms in (cost, *layer.spread[form])] if layer.measured else ["", "", ""]
            share = f"{cost / layer.candidates['dense']:.2f}"
            chosen = form == layer.lowering
            label = f"[bold green]{form}[/]" if chosen else form
            table.add_row(escape(name), label, *times, share, escape(layer.why or "") if chosen else "")
            name = ""
        for form, reason in layer.inapplicable.items():
            table.add_row(escape(name), f"[dim]{form}[/]", "", "", "", "", f"[dim]{escape(reason)}[/]")
            name = ""
    out = console()
    out.print(table)
    out.print(f"  plan   {_plan_text(bundle)}")


def verified(report: Report, *, json: bool) -> None:
    """Every check."""
    for check in report.checks:
        if check.status == "failed":
            error(f"{report.bundle}: {check.summary}")
    if report.require_engine and not report.ok and all(check.status != "failed" for check in report.checks):
        error(f"{report.bundle}: the engine was not run, and --require-engine asks for it")
    if json:
        document({**asdict(report), "ok": report.ok, "hint": report.hint})
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("artefact", "result", "against", "output"):
        table.add_column(heading, no_wrap=True)
    for heading in ("relative error", "limit", "max difference"):
        table.add_column(heading, justify="right", no_wrap=True)
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
        out.print(f"{report.precision}: {_score_text(report.scores)} (measured when it was built)", soft_wrap=True)
    if report.hint is not None:
        out.print(escape(report.hint), soft_wrap=True)


def benched(results: Sequence[Result], *, json: bool) -> None:
    """Latencies, and the ratio to the first bundle."""
    if json:
        document({"results": [{**asdict(result), "throughput": result.throughput} for result in results]})
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("bundle", "backend", "precision"):
        table.add_column(heading, no_wrap=True)
    for heading in ("batch", "threads", "median ms", "p10", "p90", "runs", "samples/s", "speed-up"):
        table.add_column(heading, justify="right", no_wrap=True)
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


def _gpu_table(results: Sequence[Result]) -> Table:
    """Medians on the GPU, in the terms of trtexec."""
    table = Table(box=None, pad_edge=False, header_style="bold", title="on the GPU, median ms", title_justify="left")
    for heading in ("bundle", "CUDA graph"):
        table.add_column(heading, no_wrap=True)
    for heading in ("H2D", "compute", "D2H", "latency", "p90", "enqueue", "samples/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        for found in result.gpu:
            parts = (found.h2d, found.gpu, found.d2h, found.latency)
            times = [*(part.median_ms for part in parts), found.latency.p90_ms, found.enqueue.median_ms]
            table.add_row(
                escape(result.bundle), "yes" if found.graphs else "no", *(f"{ms:.3f}" for ms in times),
                f"{found.throughput:.0f}",
            )  # fmt: skip
    return table


def compared(comparison: Comparison, written: Sequence[Path], *, json: bool) -> None:
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
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("engine", "runs on", "precision"):
        table.add_column(heading, no_wrap=True)
    for heading in ("params", "MACs", "density", "index", "paper's", "bytes", "peak memory", "difference", "top-1",
                    "accuracy"):  # fmt: skip
        table.add_column(heading, justify="right", no_wrap=True)
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

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("engine", no_wrap=True)
    for heading in ("batch", "median ms", "p10", "p90", "runs", "samples/s", "speed-up (95 %)", "bound"):
        table.add_column(heading, justify="right", no_wrap=True)
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
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(f"profiled, ms (batch {times[0][1].batch})", no_wrap=True)
    for heading in (*times[0][1].groups, "how many copies"):
        table.add_column(heading, justify="right", no_wrap=True)
    for label, found in times:
        table.add_row(escape(label), *(f"{ms:.3f}" for ms in found.groups.values()), str(found.moves))
    return table


def advised(advice: Advice, *, json: bool) -> None:
    """What pruning could gain: a row for every layer and granularity that pays, the recommended one marked."""
    if json:
        document(advice.model_dump(mode="json"))
        return
    out = console()
    where = f"batch {advice.batch}, {advice.threads} threads, {advice.machine}"
    out.print(f"[bold]{escape(advice.model)}[/]  {escape(where)}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("layer", "F x C x R x S", "output"):
        table.add_column(heading, no_wrap=True)
    for heading in ("dense ms", "share"):
        table.add_column(heading, justify="right", no_wrap=True)
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
        console(stderr=True).print(f"[yellow]warning:[/] {escape(warning)}", soft_wrap=True)


def _granularity_text(granularity: Granularity, filters: int) -> str:
    whose = "the layer" if granularity.filter_group >= filters else f"{granularity.filter_group} filters"
    return f"kernels, one list for {whose}" if granularity.kind == "kernel" else f"stripes, one box for {whose}"


def diagnosed(findings: Sequence[Finding], *, json: bool) -> None:
    """What was found on this machine."""
    if json:
        document({"checks": [asdict(finding) for finding in findings]})
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("what", "status", "version"):
        table.add_column(heading, no_wrap=True)
    table.add_column("detail", overflow="fold")
    for finding in findings:
        detail = escape(finding.detail) + (f" [dim]→ {escape(finding.remedy)}[/]" if finding.remedy else "")
        table.add_row(finding.name, _STATUS[finding.status], finding.version or "", detail)
    console().print(table)


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


def _headline(bundle: Bundle) -> str:
    manifest = bundle.manifest
    profile = ", ".join(
        f"{name} {'x'.join(map(str, limits['min']))}..{'x'.join(map(str, limits['max']))}"
        for name, limits in manifest.profile.items()
    )
    return f"{manifest.method} for {manifest.backend} {manifest.precision}, {escape(profile)}"


def _layer_row(layer: LayerRecord) -> tuple[str, ...]:
    shape = " x ".join(map(str, layer.shape)) + (f" /{layer.groups}" if layer.groups > 1 else "")
    pruned = layer.kind != "dense"
    return (
        escape(layer.name),
        layer.kind,
        shape,
        "x".join(map(str, layer.output_size)),
        f"{layer.density:.3f}" if pruned else "",
        f"{layer.retained_params:,}",
        f"{layer.retained_macs:,}",
        bytes_text(layer.index_bytes) if pruned else "",
        layer.lowering or "dense",
        escape(layer.why or layer.reason or ""),
    )


def _print_quantisation(out: Console, bundle: Bundle, *, layers: bool) -> None:
    """How many layers are quantised and what it costs; with ``layers`` every layer's precision."""
    record, kind = bundle.manifest.quantisation, bundle.manifest.precision
    if record is None:
        return
    kept = sum(choice.precision == kind for choice in record.layers.values())
    method = record.method if record.percentile is None else f"{record.method} {record.percentile:g}"
    out.print(f"  {kind}   {kept} of {len(record.layers)} layers, the rest {record.fallback}; ranges by {method}")
    out.print(f"         {_score_text(record.scores.model_dump())}", soft_wrap=True)
    if record.floating is not None and record.quantised is not None:
        out.print(
            f"         whole net {record.floating.median_ms:.3f} ms before, {record.quantised.median_ms:.3f} ms {kind}"
        )
    if not layers:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("layer", no_wrap=True)
    table.add_column("precision", no_wrap=True)
    table.add_column("error alone", justify="right", no_wrap=True)
    table.add_column("why", overflow="fold")
    for name, choice in record.layers.items():
        error = f"{choice.error:.2e}" if choice.error is not None else ""
        table.add_row(escape(name), choice.precision, error, escape(choice.reason or ""))
    out.print(table)


def _score_text(scores: dict[str, Any]) -> str:
    error = f"relative error {scores['error']:.2e} on {scores['samples']} samples"
    if scores["measure"] is None:
        return error
    return (
        f"{scores['measure']} {scores['floating']:.2%} before, {scores['kept']:.2%} after (drop {scores['drop']:.2f}, "
        f"{scores['max_drop']:g} allowed; every layer quantised {scores['all_quantised']:.2%}), {error}"
    )


def _before_after(before: int, after: int) -> str:
    return f"{before:,} → {after:,} ({after / before - 1:+.1%})" if before else "0"


def _bound(totals: Any) -> str:
    """The most that the MACs left allow, 1/density."""
    return f"{totals.dense_macs / totals.retained_macs:.2f}x" if totals.retained_macs else "none"


def _print_paper(out: Console, totals: TotalsRecord) -> None:
    counts = totals.as_in_paper
    while counts is not None:
        params = _before_after(counts.dense_params, counts.retained_params)
        flops = _before_after(counts.dense_flops, counts.retained_flops)
        out.print(f"  as in the paper ({counts.counting}): params {params}, FLOPs {flops}", soft_wrap=True)
        counts = counts.other


def _print_points(out: Console, points: Sequence[dict[str, Any]], totals: TotalsRecord) -> None:
    """PPT-KP's pruning points: a row for every kernel size, and what ``--point`` would leave of the net."""
    if not points:
        out.print("  no pruning points: the norms have no margins")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("  --point", justify="right", no_wrap=True)
    table.add_column("kernels", no_wrap=True)
    for heading in ("norm up to", "share", "margin empty", "kernels left", "params left", "MACs left"):
        table.add_column(heading, justify="right", no_wrap=True)
    for point in points:
        number = str(point["point"])
        left = (
            tuple(
                f"{kept:,} ({kept / dense - 1:+.1%})"
                for kept, dense in (
                    point["kernels"], (point["params"], totals.dense_params), (point["macs"], totals.dense_macs)
                )
            )
            if point["kernels"] is not None else ()
        )  # fmt: skip
        for sizes, found in point["norms"].items():
            norm = ("no such point", "", "")
            if found is not None:
                norm = (f"{found['threshold']:.4g}", f"{found['ratio']:.1%}", f"{found['depth']:.0%}")
            table.add_row(number, sizes, *norm, *left)
            number, left = "", ()
    out.print(table)


def _index_text(bundle: Bundle) -> str:
    totals = bundle.manifest.totals
    paper = f" (as in the paper {bytes_text(totals.paper_index_bytes)})" if totals.paper_index_bytes is not None else ""
    return f"index sets {bytes_text(totals.index_bytes)}{paper}"


def _plan_text(bundle: Bundle) -> str:
    plan = bundle.manifest.plan
    forms = [layer.lowering for layer in bundle.manifest.layers if layer.lowering is not None]
    counts = ", ".join(f"{forms.count(form)} {form}" for form in sorted(set(forms))) or "nothing packed"
    times = (
        f"; whole net {plan.dense.median_ms:.3f} ms dense, {plan.planned.median_ms:.3f} ms planned"
        if plan.dense is not None and plan.planned is not None
        else ""
    )
    return f"{plan.status}: {counts}{times}"


def _rewrites(bundle: Bundle) -> Iterator[str]:
    """What was removed from the engine's graph, and what was folded."""
    dead, gathers = bundle.manifest.plan.dead, bundle.manifest.plan.gathers
    if dead is not None and dead.layers:
        yield (
            f"  dead   removed {dead.filters:,} filters and {dead.channels:,} channels that were read: "
            f"{dead.params:,} params, {dead.macs:,} MACs of the dense net"
        )
    if gathers is not None and gathers.before > 0:
        yield f"  copies {gathers.before} Gathers of channels, {gathers.after} left after folding"


def _targets(bundle: Bundle) -> str:
    return f" for {', '.join(bundle.manifest.targets)}" if bundle.manifest.targets else ""

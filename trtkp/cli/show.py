"""What the commands print: tables for people on standard output, or one JSON document; the rest on standard error."""

from __future__ import annotations

import json as jsonlib
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from trtkp.benchmark import Result
    from trtkp.bundle import Bundle, LayerRecord
    from trtkp.doctor import Check as Finding
    from trtkp.serve.load import LoadResult
    from trtkp.serve.server import Addresses
    from trtkp.serve.triton import TritonRepository
    from trtkp.verification import Report

__all__ = [
    "benched",
    "built",
    "diagnosed",
    "error",
    "exported_to_kserve",
    "exported_to_triton",
    "inspected",
    "loaded",
    "progress",
    "serving",
    "verified",
]

_MARK = {"verified": "[green]verified[/]", "failed": "[bold red]FAILED[/]", "not run": "[yellow]not run[/]"}
_STATUS = {"ok": "[green]ok[/]", "missing": "[yellow]missing[/]", "unavailable": "[dim]unavailable[/]"}


def _console(stderr: bool = False) -> Console:
    # made at each use: tests and callers exchange sys.stdout
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, 160)  # a file has no width to fit into
    return console


def error(message: str) -> None:
    """One line on standard error."""
    _console(stderr=True).print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """A progress display on standard error that is gone at the end; gives the function that feeds it."""
    console = _console(stderr=True)
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=quiet or not console.is_terminal,
    ) as bars:
        task = bars.add_task("Starting", total=None)

        def report(phase: str, done: int, total: int) -> None:
            bars.update(task, description=phase, completed=done, total=total if total > 1 else None)

        yield report


def built(bundle: Bundle, *, json: bool) -> None:
    """What ``build`` made."""
    manifest = bundle.manifest
    if json:
        _document({"bundle": str(bundle.path), **manifest.model_dump(mode="json")})
        return
    out = _console()
    totals = manifest.totals
    out.print(f"[bold]{escape(str(bundle.path))}[/]  {_headline(bundle)}")
    out.print(f"  params {_before_after(totals.dense_params, totals.retained_params)}, {_index_text(bundle)}")
    out.print(f"  MACs   {_before_after(totals.dense_macs, totals.retained_macs)}, bound {_bound(totals)}")
    if manifest.accuracy is not None:
        out.print(f"  accuracy {manifest.accuracy['dense']:.2%} dense, {manifest.accuracy['pruned']:.2%} pruned")
    _print_quantisation(out, bundle, layers=False)
    out.print(f"  plan   {_plan_text(bundle)}")
    engine = manifest.files.get("model.engine", manifest.files["engine.onnx"])
    out.print(f"  engine {_bytes(engine.bytes)}{_targets(bundle)}, built in {sum(manifest.seconds.values()):.1f} s")
    for warning in manifest.warnings:
        _console(stderr=True).print(f"[yellow]warning:[/] {escape(warning)}", soft_wrap=True)


def inspected(bundle: Bundle, *, json: bool) -> None:
    """Every layer, and the totals."""
    manifest = bundle.manifest
    if json:
        _document({"bundle": str(bundle.path), **manifest.model_dump(mode="json")})
        return
    out = _console()
    settings = ", ".join(f"{key} {value}" for key, value in manifest.settings.items() if value is not None)
    out.print(f"[bold]{escape(str(bundle.path))}[/]  {_headline(bundle)}")
    out.print(
        f"  method {manifest.method}{f' ({settings})' if settings else ''}, source {escape(manifest.source.file)}"
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
        table.add_row(escape(name), "dense", "", "", "", "", "", "", "dense", escape(reason))
    out.print(table)
    totals = manifest.totals
    out.print(f"  params {_before_after(totals.dense_params, totals.retained_params)}, {_index_text(bundle)}")
    out.print(f"  MACs   {_before_after(totals.dense_macs, totals.retained_macs)}, bound {_bound(totals)}")
    _print_quantisation(out, bundle, layers=True)
    out.print(f"  plan   {_plan_text(bundle)}")
    out.print("  files  " + ", ".join(f"{name} {_bytes(record.bytes)}" for name, record in manifest.files.items()))
    for warning in manifest.warnings:
        out.print(f"  [yellow]warning:[/] {escape(warning)}", soft_wrap=True)


def verified(report: Report, *, json: bool) -> None:
    """Every check."""
    for check in report.checks:
        if check.status == "failed":
            error(f"{report.bundle}: {check.summary}")
    if report.require_engine and not report.ok and all(check.status != "failed" for check in report.checks):
        error(f"{report.bundle}: the engine was not run, and --require-engine asks for it")
    if json:
        _document({**asdict(report), "ok": report.ok, "hint": report.hint})
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
    out = _console()
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
        _document({"results": [{**asdict(result), "throughput": result.throughput} for result in results]})
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
    _console().print(table)


def diagnosed(findings: Sequence[Finding], *, json: bool) -> None:
    """What was found on this machine."""
    if json:
        _document({"checks": [asdict(finding) for finding in findings]})
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("what", "status", "version"):
        table.add_column(heading, no_wrap=True)
    table.add_column("detail", overflow="fold")
    for finding in findings:
        detail = escape(finding.detail) + (f" [dim]→ {escape(finding.remedy)}[/]" if finding.remedy else "")
        table.add_row(finding.name, _STATUS[finding.status], finding.version or "", detail)
    _console().print(table)


def serving(addresses: Addresses, *, json: bool) -> None:
    """Where a server that is ready listens."""
    if json:
        _document(asdict(addresses))
    else:
        out = _console()
        models = ", ".join(f"{name} ({', '.join(versions)})" for name, versions in addresses.models.items())
        grpc = f"  gRPC {addresses.grpc}" if addresses.grpc else ""
        out.print(f"ready: {addresses.http}{grpc}  models and versions: {escape(models)}", soft_wrap=True)
    sys.stdout.flush()  # whoever started the server waits for this line


def loaded(result: LoadResult, *, json: bool) -> None:
    """Latency percentiles, throughput and errors of a server under load."""
    if json:
        _document({**asdict(result), "throughput": result.throughput, "rows_per_second": result.rows_per_second})
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
    _console().print(table)
    if result.rate is not None and result.latency_ms and result.lag_ms > 0.5 * result.latency_ms["p99"]:
        warning = f"this program itself sent late (99th percentile {result.lag_ms:.1f} ms): too much load for it"
        _console(stderr=True).print(f"[yellow]warning:[/] {warning}", soft_wrap=True)


def exported_to_triton(repository: TritonRepository, *, json: bool) -> None:
    """The repository and the command that serves it."""
    if json:
        _document({**asdict(repository), "path": str(repository.path)})
        return
    for note in repository.notes:
        _console(stderr=True).print(f"[yellow]note:[/] {escape(note)}", soft_wrap=True)
    models = ", ".join(f"{name} ({', '.join(versions)})" for name, versions in repository.models.items())
    _console().print(f"[bold]{escape(str(repository.path))}[/]  models and versions: {escape(models)}", soft_wrap=True)
    _console().print(f"  {escape(repository.command)}", soft_wrap=True)


def exported_to_kserve(manifest: dict[str, Any], text: str, output: Path | None, *, json: bool) -> None:
    """The manifest, or where it is."""
    if json:
        _document(manifest)
    elif output is None:
        print(text, end="")  # noqa: T201 - for kubectl apply -f -
    else:
        _console().print(f"[bold]{escape(str(output))}[/]  kubectl apply -f {escape(str(output))}", soft_wrap=True)


def _document(value: Any) -> None:
    print(jsonlib.dumps(_finite(value), indent=1))  # noqa: T201 - the document that --json asks for


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
        _bytes(layer.index_bytes) if pruned else "",
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


def _index_text(bundle: Bundle) -> str:
    totals = bundle.manifest.totals
    paper = f" (as in the paper {_bytes(totals.paper_index_bytes)})" if totals.paper_index_bytes is not None else ""
    return f"index sets {_bytes(totals.index_bytes)}{paper}"


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


def _targets(bundle: Bundle) -> str:
    return f" for {', '.join(bundle.manifest.targets)}" if bundle.manifest.targets else ""


def _bytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB" if count >= 1e3 else f"{count} B"

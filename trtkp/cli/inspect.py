"""``trtkp inspect``: what a bundle holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from rich.markup import escape

from trtkp.cli.arguments import BundlePath, Json
from trtkp.cli.console import console, document, plain_table
from trtkp.cli.parameters import command
from trtkp.cli.totals import headline, plan_text, print_paper, print_quantisation, print_totals, rewrites
from trtkp.comparison.words import bytes_text
from trtkp.settings import Setting

if TYPE_CHECKING:
    from trtkp.bundle import Bundle, LayerRecord

__all__ = ["inspect", "show"]


@command
def inspect(
    bundle: BundlePath,
    lowerings: Annotated[
        bool,
        Setting(
            "Show every lowering that was considered, with its time, instead of the layers.",
            short="--forms",
            essential=True,
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Show what a bundle holds: layers, index sets, parameters, MACs and bytes."""
    from trtkp.bundle import load

    if lowerings and not json:
        _show_weighed(load(bundle))
    else:
        show(load(bundle), json=json)


def show(bundle: Bundle, *, json: bool) -> None:
    """Every layer, and the totals."""
    manifest = bundle.manifest
    if json:
        document({"bundle": str(bundle.path), **manifest.model_dump(mode="json")})
        return
    out = console()
    settings = ", ".join(f"{key} {value}" for key, value in manifest.settings.items() if value is not None)
    out.print(f"[bold]{escape(str(bundle.path))}[/]  {headline(bundle)}")
    out.print(
        f"  method {manifest.method}{f' ({settings})' if settings else ''}, source {escape(manifest.source.file)}",
        soft_wrap=True,
    )
    table = plain_table(("layer", "kind", "F x C x R x S", "output"), ("density", "params", "MACs", "index"))
    table.add_column("lowering")
    table.add_column("why", overflow="fold")
    for layer in manifest.layers:
        table.add_row(*_layer_row(layer))
    for name, reason in manifest.left_out.items():
        kind = "dynamic" if "DynamicPattern" in reason else "dense"
        table.add_row(escape(name), kind, "", "", "", "", "", "", kind, escape(reason))
    out.print(table)
    print_totals(out, bundle)
    print_paper(out, manifest.totals)
    print_quantisation(out, bundle, layers=True)
    out.print(f"  plan   {plan_text(bundle)}")
    for line in rewrites(bundle):
        out.print(line)
    out.print("  files  " + ", ".join(f"{name} {bytes_text(record.bytes)}" for name, record in manifest.files.items()))
    for warning in manifest.warnings:
        out.print(f"  [yellow]warning:[/] {escape(warning)}", soft_wrap=True)


def _show_weighed(bundle: Bundle) -> None:
    """Every lowering of every packed layer: its time, its predicted share of the dense time, or why it was left out."""
    table = plain_table(("layer", "lowering"), ("median ms", "p10", "p90", "of dense"))
    table.add_column("why", overflow="fold")
    for layer in bundle.manifest.layers:
        name = layer.name
        if layer.lowering is not None and not layer.candidates:  # asked for, so no other was considered
            table.add_row(escape(name), f"[bold green]{layer.lowering}[/]", "", "", "", "", escape(layer.why or ""))
            name = ""
        for lowering, cost in layer.candidates.items():
            times = [f"{ms:.3f}" for ms in (cost, *layer.spread[lowering])] if layer.measured else ["", "", ""]
            share = f"{cost / layer.candidates['dense']:.2f}"
            chosen = lowering == layer.lowering
            label = f"[bold green]{lowering}[/]" if chosen else lowering
            table.add_row(escape(name), label, *times, share, escape(layer.why or "") if chosen else "")
            name = ""
        for lowering, reason in layer.inapplicable.items():
            table.add_row(escape(name), f"[dim]{lowering}[/]", "", "", "", "", f"[dim]{escape(reason)}[/]")
            name = ""
    out = console()
    out.print(table)
    out.print(f"  plan   {plan_text(bundle)}")


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

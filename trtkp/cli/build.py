"""``trtkp build``: prune a model one-shot and build a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.markup import escape

from trtkp.cli.arguments import Data, FromZeros, Json, MethodName, ModelPath
from trtkp.cli.console import console, document, progress, warn
from trtkp.cli.parameters import Given, command
from trtkp.cli.totals import headline, plan_text, print_quantisation, print_totals, rewrites
from trtkp.comparison.words import bytes_text
from trtkp.pipeline.options import BuildOptions
from trtkp.pruning.methods.registry import METHODS
from trtkp.settings import Setting

if TYPE_CHECKING:
    from trtkp.bundle import Bundle
    from trtkp.data.labelled import LabelledData

__all__ = ["build", "show"]


@command
def build(
    *,
    model: ModelPath,
    output: Annotated[Path, Setting("Directory of the bundle.", short="-o", essential=True)],
    method: MethodName = None,
    settings: Annotated[dict[str, Any], Given(METHODS, chosen_by="method", trained=False)],
    from_zeros: FromZeros = False,
    data: Data = None,
    options: BuildOptions,
    json: Json = False,
) -> None:
    """Prune a model one-shot, export it and build an engine: one bundle."""
    from trtkp.pipeline.build import build as build_bundle

    with progress(quiet=json) as report:
        bundle = build_bundle(
            model,
            output,
            method="from-zeros" if from_zeros else method,
            options=options,
            data=_read(data, options.precision),
            progress=report,
            **settings,
        )
    show(bundle, json=json)


def _read(path: Path | None, precision: str) -> LabelledData | Path | None:
    """Accuracy alone needs labels, and an archive that has none is refused before the model is loaded."""
    from trtkp.data.labelled import load_data

    if path is None or precision in ("int8", "fp8") or path.is_dir() or path.suffix != ".npz":
        return path
    return load_data(path)


def show(bundle: Bundle, *, json: bool) -> None:
    """What ``build`` made."""
    from trtkp.engine import get_backend

    manifest = bundle.manifest
    if json:
        document({"bundle": str(bundle.path), **manifest.model_dump(mode="json")})
        return
    out = console()
    out.print(f"[bold]{escape(str(bundle.path))}[/]  {headline(bundle)}")
    print_totals(out, bundle)
    if manifest.accuracy is not None:
        out.print(f"  accuracy {manifest.accuracy['dense']:.2%} dense, {manifest.accuracy['pruned']:.2%} pruned")
    print_quantisation(out, bundle, layers=False)
    out.print(f"  plan   {plan_text(bundle)}")
    for line in rewrites(bundle):
        out.print(line)
    engine = manifest.files[get_backend(manifest.backend).artefact]
    out.print(f"  engine {bytes_text(engine.bytes)}{_targets(bundle)}, built in {sum(manifest.seconds.values()):.1f} s")
    for warning in manifest.warnings:
        warn(warning)


def _targets(bundle: Bundle) -> str:
    return f" for {', '.join(bundle.manifest.targets)}" if bundle.manifest.targets else ""

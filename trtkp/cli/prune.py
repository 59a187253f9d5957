"""``trtkp prune``: prune a model with training before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.markup import escape

from trtkp.cli.arguments import FromZeros, Json, MethodName, ModelPath
from trtkp.cli.console import console, document, plain_table, progress, warn
from trtkp.cli.parameters import Given, Only, command
from trtkp.cli.totals import before_after, bound, print_paper
from trtkp.comparison.words import bytes_text
from trtkp.data.options import SAMPLE_FILES
from trtkp.errors import InputError
from trtkp.pruning.methods.registry import DEFAULT, METHODS, make_method
from trtkp.pruning.run.options import PruneOptions, with_epochs
from trtkp.pruning.train.recipe import Preprocessing, Recipe, Training, read_recipe
from trtkp.settings import Setting

if TYPE_CHECKING:
    from rich.console import Console

    from trtkp.bundle.manifest import TotalsRecord
    from trtkp.bundle.pruned import Pruned
    from trtkp.pruning.methods.vskp_lists import Listed

__all__ = ["prune"]


@command
def prune(
    *,
    model: ModelPath,
    output: Annotated[Path, Setting("Directory to write.", short="-o", essential=True)],
    method: MethodName = None,
    settings: Annotated[dict[str, Any], Given(METHODS, chosen_by="method")],
    index: Annotated[
        Path | None,
        Setting("V-SKP: keep the kernels that this file lists, as trtkp export-index writes it.", group="Pruning"),
    ] = None,
    from_zeros: FromZeros = False,
    data: Annotated[
        Path | None,
        Setting(
            f"Samples to train with and to measure accuracy on: {SAMPLE_FILES}.",
            group="Training",
            essential=True,
        ),
    ] = None,
    recipe: Annotated[
        Path | None,
        Setting("YAML file of the training; options on the line win over it.", group="Training", essential=True),
    ] = None,
    stages: Annotated[dict[str, Any], Given({"": Recipe})],
    regularise_epochs: Annotated[
        int | None,
        Setting(
            "Epochs of the training towards the masks, for methods that have one.",
            ge=0,
            default="as --epochs",
            group="Training",
        ),
    ] = None,
    seed: Annotated[dict[str, Any], Given({"": Training})],
    normal: Annotated[dict[str, Any], Given({"": Preprocessing})],
    options: Annotated[
        PruneOptions,
        Only(
            "input_shape", "include", "skip", "arch", "trust_pickle", "device", "restart", "test_every", "tensorboard"
        ),
    ],
    json: Json = False,
) -> None:
    """Prune a model with training before and after; trtkp build takes what it writes."""
    from trtkp.pruning.run import prune as prune_model

    training = read_recipe(recipe) if recipe is not None else Training()
    training = replace(training, **seed, data=replace(training.data, **normal))
    name = "from-zeros" if from_zeros else method or training.method or DEFAULT
    of_recipe = training.settings if name == training.method else {}
    chosen = _listed(index, method, settings) or make_method(name, **of_recipe | settings)
    training = with_epochs(training, chosen, regularise=regularise_epochs, **stages)
    with progress(quiet=json) as report:
        pruned = prune_model(
            model, output, method=chosen, options=replace(options, training=training), data=data, progress=report
        )
    if pruned.written:
        show(pruned, json=json)


def _listed(index: Path | None, method: str | None, settings: dict[str, Any]) -> Listed | None:
    """The method that takes kernels chosen elsewhere, where a file of them was given."""
    if index is None:
        return None
    from trtkp.pruning.methods.vskp_lists import Listed

    if settings or method not in (None, Listed.name):
        what = f"--{next(iter(settings)).replace('_', '-')}" if settings else f"--method {method}"
        raise InputError(f"{what} and --index exclude each other", remedy=f"leave out {what.split(maxsplit=1)[0]}")
    return Listed(index)


def show(pruned: Pruned, *, json: bool) -> None:
    """What ``prune`` left."""
    manifest = pruned.manifest
    if json:
        document({"pruned": str(pruned.path), **manifest.model_dump(mode="json")})
        return
    out = console()
    totals = manifest.totals
    out.print(f"[bold]{escape(str(pruned.path))}[/]  {manifest.method}, {len(manifest.layers)} layers pruned")
    paper = "" if totals.paper_index_bytes is None else f" (as in the paper {bytes_text(totals.paper_index_bytes)})"
    out.print(f"  params {before_after(totals.dense_params, totals.retained_params)}, "
              f"index sets {bytes_text(totals.index_bytes)}{paper}")  # fmt: skip
    out.print(f"  MACs   {before_after(totals.dense_macs, totals.retained_macs)}, bound {bound(totals)}")
    print_paper(out, totals)
    if manifest.accuracy is not None:
        out.print("  accuracy " + ", ".join(f"{value:.2%} {name}" for name, value in manifest.accuracy.items()))
    if "points" in manifest.report:
        _print_points(out, manifest.report["points"], totals)
    for warning in manifest.warnings:
        warn(warning)


def _print_points(out: Console, points: Sequence[dict[str, Any]], totals: TotalsRecord) -> None:
    """PPT-KP's pruning points: a row for every kernel size, and what ``--point`` would leave of the net."""
    if not points:
        out.print("  no pruning points: the norms have no margins")
        return
    numbers = ("norm up to", "share", "margin empty", "kernels left", "params left", "MACs left")
    table = plain_table(("  --point", "kernels"), numbers)
    table.columns[0].justify = "right"
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

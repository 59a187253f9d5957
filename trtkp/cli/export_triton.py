"""``trtkp export-triton``: a model repository for Triton."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.markup import escape

from trtkp.cli.arguments import Json
from trtkp.cli.console import console, document, warn
from trtkp.cli.parameters import Only, command
from trtkp.cli.serve import ServedBundles
from trtkp.serving.options import ServeOptions
from trtkp.settings import Setting

if TYPE_CHECKING:
    from trtkp.serving.export.triton import TritonRepository

__all__ = ["export_triton"]


@command
def export_triton(
    *,
    bundles: ServedBundles,
    output: Annotated[Path, Setting("The model repository.", short="-o", essential=True)],
    options: Annotated[ServeOptions, Only("max_batch", "max_delay_ms", "instances", "threads", "queue", "timeout_s")],
    json: Json = False,
) -> None:
    """Write a Triton model repository, and the tritonserver command that serves it."""
    from trtkp.serving.server.start import require_packages

    require_packages()
    from trtkp.serving.export.triton import export_triton as export

    _show(export(bundles, output, options), json=json)


def _show(repository: TritonRepository, *, json: bool) -> None:
    """The repository and the command that serves it."""
    if json:
        document({**asdict(repository), "path": str(repository.path)})
        return
    for note in repository.notes:
        warn(note, kind="note")
    models = ", ".join(f"{name} ({', '.join(versions)})" for name, versions in repository.models.items())
    console().print(f"[bold]{escape(str(repository.path))}[/]  models and versions: {escape(models)}", soft_wrap=True)
    console().print(f"  {escape(repository.command)}", soft_wrap=True)

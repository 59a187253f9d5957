"""``trtkp export-kserve``: a manifest for KServe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from rich.markup import escape

from trtkp.cli.arguments import Json
from trtkp.cli.console import console, document
from trtkp.cli.parameters import Given, command
from trtkp.serving.export.kserve import inference_service, write_manifest
from trtkp.settings import Setting

__all__ = ["export_kserve"]


@command
def export_kserve(
    *,
    name: Annotated[str, Setting("Name of the InferenceService.", argument=True)],
    storage: Annotated[str, Setting("URI of the bundle, or of the Triton repository.", essential=True)],
    settings: Annotated[dict[str, Any], Given({"": inference_service})],
    output: Annotated[
        Path | None, Setting("File to write.", default="standard output", short="-o", essential=True)
    ] = None,
    json: Json = False,
) -> None:
    """Write a KServe InferenceService manifest."""
    manifest = inference_service(name, storage, **settings)
    _show(manifest, write_manifest(manifest, output), output, json=json)


def _show(manifest: dict[str, Any], text: str, output: Path | None, *, json: bool) -> None:
    """The manifest, or where it is."""
    if json:
        document(manifest)
    elif output is None:
        print(text, end="")  # noqa: T201 - for kubectl apply -f -
    else:
        console().print(f"[bold]{escape(str(output))}[/]  kubectl apply -f {escape(str(output))}", soft_wrap=True)

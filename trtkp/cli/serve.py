"""``trtkp serve``: a server for bundles."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

from rich.markup import escape

from trtkp.cli.arguments import Json
from trtkp.cli.console import console, document
from trtkp.cli.parameters import command
from trtkp.serving.options import ServeOptions
from trtkp.settings import Setting

if TYPE_CHECKING:
    from trtkp.serving.server.serve import Addresses

__all__ = ["ServedBundles", "require_packages", "serve"]

ServedBundles: TypeAlias = Annotated[
    list[Path], Setting("Bundles, or directories of numbered bundles (versions).", argument=True)
]

_PACKAGES = {
    **{name: name for name in ("aiohttp", "httptools", "prometheus_client", "starlette", "tritonclient", "uvicorn")},
    "grpc": "grpcio",
    "yaml": "pyyaml",
}


@command
def serve(*, bundles: ServedBundles, options: ServeOptions, json: Json = False) -> None:
    """Serve bundles: Open Inference Protocol (KServe v2) over HTTP and gRPC, with dynamic batching."""
    require_packages()
    from trtkp.serving.server.serve import serve as serve_bundles

    serve_bundles(bundles, options, lambda addresses: _show(addresses, json=json))


def require_packages() -> None:
    """Refuse to go on where a package of the extra ``serve`` is missing.

    Raises:
        JobError: naming the package.
    """
    from trtkp.machine.packages import require

    require("serving", "serve", _PACKAGES)


def _show(addresses: Addresses, *, json: bool) -> None:
    """Where a server that is ready listens."""
    if json:
        document(asdict(addresses))
    else:
        out = console()
        models = ", ".join(f"{name} ({', '.join(versions)})" for name, versions in addresses.models.items())
        grpc = f"  gRPC {addresses.grpc}" if addresses.grpc else ""
        out.print(f"ready: {addresses.http}{grpc}  models and versions: {escape(models)}", soft_wrap=True)
    sys.stdout.flush()  # whoever started the server waits for this line

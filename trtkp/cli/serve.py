"""``trtkp serve``: a server for bundles."""

from __future__ import annotations

import os
import sys
import threading
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
    from trtkp.serving.addresses import Addresses

__all__ = ["ServedBundles", "serve"]

ServedBundles: TypeAlias = Annotated[
    list[Path], Setting("Bundles, or directories of numbered bundles (versions).", argument=True)
]


@command
def serve(*, bundles: ServedBundles, options: ServeOptions, json: Json = False) -> None:
    """Serve bundles: Open Inference Protocol (KServe v2) over HTTP and gRPC, with dynamic batching.

    SIGTERM ends the server after the accepted requests, SIGHUP loads the bundles anew.
    """
    from trtkp.serving.server.start import serve as serve_bundles

    shown: list[threading.Thread] = []

    def show(addresses: Addresses) -> None:
        # In a thread, since whoever reads standard output may stall, and the server must not wait for it.
        shown.append(threading.Thread(target=_show, args=(addresses,), kwargs={"json": json}, daemon=True))
        shown[0].start()

    serve_bundles(bundles, options, show)
    if shown and shown[0].is_alive():
        os._exit(0)  # the thread still waits and holds the lock of standard output, which the interpreter's end needs


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

"""``trtkp.serve``: serve bundles. The server itself is imported when it starts, so this module is light."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path

from trtkp.machine.packages import require
from trtkp.serving.addresses import Addresses
from trtkp.serving.options import ServeOptions

__all__ = ["require_packages", "serve"]

_PACKAGES = {
    **{
        name: name
        for name in ("aiohttp", "h2", "httptools", "prometheus_client", "starlette", "tritonclient", "uvicorn")
    },
    "grpc": "grpcio",
    "yaml": "pyyaml",
}


def require_packages() -> None:
    """Check that the packages of the server are installed.

    Raises:
        JobError: a package is missing.
    """
    require("serving", "serve", _PACKAGES)


def serve(
    bundles: Sequence[str | PathLike[str]],
    options: ServeOptions | None = None,
    on_ready: Callable[[Addresses], None] | None = None,
) -> None:
    """Serve bundles by the Open Inference Protocol (KServe v2), over HTTP and gRPC, until SIGTERM or SIGINT.

    The first signal refuses new requests and waits for those in progress; a second one ends the server without waiting.
    SIGHUP loads the bundles anew: those that were replaced or added take over once they have finished their warm-up,
    and if one cannot be loaded, nothing changes. Call it in the main thread, which alone receives signals.

    Args:
        bundles: bundles, or directories of numbered bundles, which are the versions of one model.
        options: addresses, batching, limits and credentials; None for the defaults.
        on_ready: called when every model has finished its warm-up.

    Raises:
        InputError: a bundle, option, port or certificate cannot be used.
        JobError: an engine cannot run on this machine, or a package of the extra ``serve`` is missing.

    Example:
        This server stops as soon as it is ready.

        >>> import os, signal
        >>> import trtkp
        >>> def stop(addresses: trtkp.Addresses) -> None:
        ...     print(addresses.models)
        ...     os.kill(os.getpid(), signal.SIGTERM)
        >>> options = trtkp.ServeOptions(port=0, grpc_port=None, log_level="warning")
        >>> trtkp.serve(["kep"], options, stop)
        {'kep': ['1']}
    """
    require_packages()
    from trtkp.serving.server.serve import serve as run_server

    run_server([Path(bundle) for bundle in bundles], options, on_ready)

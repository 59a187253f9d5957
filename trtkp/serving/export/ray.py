"""A Ray Serve application: serves bundles over HTTP on a number of replicas that follows the load.

    serve run "trtkp.serving.export.ray:application" bundles=/models/kep max_replicas=8

Every replica holds the models of all bundles, with their queues and worker processes. Ray distributes requests among
the replicas, starts and stops replicas by load, and replaces those that die. The bundles' paths must exist on every
node.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import serve
from starlette.applications import Starlette
from starlette.types import ASGIApp

from trtkp.errors import InputError
from trtkp.serving.logs import start_logging
from trtkp.serving.models.repository import find_bundles
from trtkp.serving.models.service import Service
from trtkp.serving.options import ServeOptions
from trtkp.serving.protocol.rest import make_app

__all__ = ["application", "make_application"]


def application(arguments: Mapping[str, str]) -> Any:
    """Make the application from the arguments of ``serve run``.

    Args:
        arguments: ``bundles`` (paths, separated by commas) and the numbers that `make_application` takes, as text.

    Raises:
        InputError: there are no bundles, or an argument is unknown.
    """
    known = {"min_replicas": int, "max_replicas": int, "target_requests": float, "cpus": float, "gpus": float}
    given = dict(arguments)
    paths = [Path(path) for path in given.pop("bundles", "").split(",") if path]
    if unknown := sorted(set(given) - set(known)):
        raise InputError(f"no argument {unknown[0]!r}", remedy=f"use bundles, {', '.join(known)}")
    return make_application(paths, **{name: known[name](value) for name, value in given.items()})


def make_application(
    bundles: Sequence[Path],
    *,
    options: ServeOptions | None = None,
    min_replicas: int = 1,
    max_replicas: int = 4,
    target_requests: float = 8.0,
    cpus: float = 1.0,
    gpus: float = 0.0,
) -> Any:
    """Make an application to run with ``ray.serve.run``.

    Args:
        bundles: bundles, or directories of numbered bundles.
        options: batching and limits; addresses and TLS are configured in Ray.
        min_replicas: least number of replicas.
        max_replicas: largest number of replicas.
        target_requests: number of requests in progress per replica above which Ray adds replicas.
        cpus: CPUs per replica.
        gpus: GPUs per replica.

    Raises:
        InputError: a path is not a bundle, or the numbers of replicas are not a range.
        IntegrityError: a file of a bundle is missing or was changed.
    """
    if not 0 <= min_replicas <= max_replicas or max_replicas < 1:
        raise InputError(f"min_replicas {min_replicas}, max_replicas {max_replicas}: not a range")
    paths = [Path(path).absolute() for path in bundles]
    find_bundles(paths)
    settings = options or ServeOptions()
    deployment = serve.deployment(
        name="trtkp",
        autoscaling_config={
            "min_replicas": min_replicas,
            "initial_replicas": max(1, min_replicas),
            "max_replicas": max_replicas,
            "target_ongoing_requests": target_requests,
        },
        max_ongoing_requests=settings.queue,
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        health_check_period_s=2,  # Ray's 10 s would leave a dead replica among those that get requests for as long
        graceful_shutdown_timeout_s=settings.grace_s,
    )

    def make() -> ASGIApp:
        return _replica_app(paths, settings)

    return deployment(serve.ingress(make)(_Replica)).bind()


class _Replica:
    """The class that Ray instantiates per replica; all requests go to the ASGI application."""


def _replica_app(paths: Sequence[Path], options: ServeOptions) -> ASGIApp:
    """Make the HTTP application of one replica. Its workers start before the first request and end with it."""
    start_logging(options.log_level)
    service = Service(paths, options)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.drain()
            await service.stop()

    return make_app(service, options.token(), lifespan)

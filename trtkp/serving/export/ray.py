"""A Ray Serve application: bundles behind the protocol's HTTP form, on as many replicas as the load asks for.

    serve run "trtkp.serving.export.ray:application" bundles=/models/kep max_replicas=8

Every replica has the models of all bundles, with their queues and worker processes; Ray's proxies share requests out
among replicas, start and stop them by load, and replace those that die. The paths must be there on every node.
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
    """What ``serve run`` calls: ``bundles=A,B``, and the arguments of `make_application`.

    Raises:
        InputError: no bundles, or an unknown argument.
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
    """An application to run with ``ray.serve.run``.

    Args:
        bundles: bundles, or directories of numbered ones.
        options: of batching and limits; addresses and TLS are Ray's.
        min_replicas: fewest replicas.
        max_replicas: most replicas.
        target_requests: requests on their way that a replica is to have; Ray adds replicas above it.
        cpus: of a replica.
        gpus: of a replica.

    Raises:
        InputError: a bundle that is missing or was changed, or no range of replicas.
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
        health_check_period_s=2,
        graceful_shutdown_timeout_s=settings.grace_s,
    )

    def make() -> ASGIApp:
        return _replica_app(paths, settings)

    return deployment(serve.ingress(make)(_Replica)).bind()


class _Replica:
    """Ray's handle of a replica; the application answers."""


def _replica_app(paths: Sequence[Path], options: ServeOptions) -> ASGIApp:
    """The HTTP application of one replica: its workers start before the first request and end with it."""
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

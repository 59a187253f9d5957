"""All models of a server, and what happens to every request independently of its protocol.

HTTP and gRPC both go through `Service`: it finds the model, admits or refuses the request, counts it and logs it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

import numpy as np

from trtkp.bundle import Bundle
from trtkp.errors import TrtkpError
from trtkp.machine.gpu import check_gpu
from trtkp.serving.admission.memory import Memory
from trtkp.serving.admission.turns import Turns
from trtkp.serving.contract import Contract, RawTensor
from trtkp.serving.errors import NotFound, ServeError, Unavailable
from trtkp.serving.logs import log
from trtkp.serving.models.metrics import Metrics
from trtkp.serving.models.model import Model
from trtkp.serving.models.repository import find_bundles
from trtkp.serving.options import ServeOptions

__all__ = ["EXTENSIONS", "Exchange", "Inference", "Service"]

#: Optional parts of the protocol that this server implements, by the protocol's names.
EXTENSIONS = ("binary_tensor_data", "model_configuration", "statistics", "model_repository")


@dataclass(frozen=True)
class Inference:
    """A decoded inference request that has not been checked against a model yet.

    Attributes:
        tensors: the inputs.
        outputs: names of the requested outputs; empty for all.
        id: the client's id, which is sent back.
        timeout_s: the client's time limit in seconds; None for the server's.
    """

    tensors: Sequence[RawTensor]
    outputs: Sequence[str] = ()
    id: str = ""
    timeout_s: float | None = None


@dataclass(eq=False)
class Exchange:
    """What metrics and logs record about one request."""

    protocol: str
    request_id: str
    model: Model | None = None
    status: int = 200
    started: float = field(default_factory=monotonic)
    error: str | None = None


class Service:
    """The models of a server, each with its own worker process.

    Args:
        bundles: bundles, or directories of numbered bundles.
        options: batching and limits; None for the defaults.

    Raises:
        InputError: a path is not a bundle, the options do not fit it, or there is no such GPU.
        IntegrityError: a file of a bundle is missing or was changed.
    """

    def __init__(self, bundles: Sequence[Path], options: ServeOptions | None = None) -> None:
        self.options = options or ServeOptions()
        check_gpu(self.options.device)
        self.metrics = Metrics()
        self.draining = False
        self._open: set[Exchange] = set()
        self._retiring: set[Model] = set()
        self._started = False
        self._reloading = False
        self.memory = Memory(self.options.pending_bytes)
        self.turns = Turns()
        self.metrics.watch_memory(lambda: self.memory.held)
        self._changed = asyncio.Event()
        self._paths = [Path(os.path.abspath(path)) for path in bundles]  # noqa: PTH100 - resolve() follows links
        self.models: dict[str, dict[str, Model]] = {}
        for name, version, bundle in find_bundles(self._paths):
            self.models.setdefault(name, {})[version] = self._model(name, version, bundle)
        for model in self.all_models:
            model.publish()

    @property
    def all_models(self) -> list[Model]:
        """Every version of every model."""
        return [model for versions in self.models.values() for model in versions.values()]

    @property
    def ready(self) -> bool:
        """Whether every model is ready and the server admits new requests."""
        return not self.draining and all(model.ready for model in self.all_models)

    async def start(self) -> None:
        """Start every worker; if one fails, stop the others.

        Raises:
            TrtkpError: an engine cannot run on this machine.
        """
        await _start(self.all_models)
        self._started = True
        log("ready", models=self._names(), bundles=self._digests())

    async def reload(self) -> bool:
        """Serve what is at the bundles' paths now, and return whether that succeeded.

        Bundles that were replaced, and versions that were added, are started beside those that are served. When all
        have finished their warm-up they take over at once; the old ones answer the requests that they have accepted,
        and then end. If anything fails, the log says why and nothing changes.
        """
        if self._reloading or self.draining or not self._started:
            log("reload ignored", level=logging.WARNING, error="the start, another one, or the shutdown is in progress")
            return False
        self._reloading = True
        try:
            models: dict[str, dict[str, Model]] = {}
            for name, version, bundle in await asyncio.to_thread(find_bundles, self._paths):  # hashes every file
                models.setdefault(name, {})[version] = self._successor(name, version, bundle)
            served = set(self.all_models)
            await _start([new for versions in models.values() for new in versions.values() if new not in served])
        except (TrtkpError, OSError) as error:
            log("reload failed", level=logging.ERROR, error=str(error))
            return False
        finally:
            self._reloading = False
        self.models = models
        retired = served - set(self.all_models)
        self._retiring |= retired
        for name, version in {model.key for model in retired} - {model.key for model in self.all_models}:
            self.metrics.forget(name, version)
        for model in self.all_models:
            model.publish()
        log("reloaded", models=self._names(), bundles=self._digests())
        await asyncio.gather(*(self._retire(model) for model in retired))
        return True

    async def drain(self) -> None:
        """Refuse new requests, and wait for those in progress, but no longer than the grace period."""
        self.draining = True
        log("draining", in_flight=len(self._open))
        if not await self._finished(lambda: not self._open):
            log("gave up waiting", level=logging.WARNING, in_flight=len(self._open))

    async def stop(self) -> None:
        """End every worker."""
        await asyncio.gather(*(model.stop() for model in {*self.all_models, *self._retiring}))

    def find(self, name: str, version: str = "") -> Model:
        """Return a version of a model; without a version, the newest.

        Raises:
            NotFound: the model or the version does not exist.
        """
        versions = self.models.get(name)
        if versions is None:
            raise NotFound(f"no model {name[:80]!r}")
        if not version:
            return versions[max(versions, key=int)]
        if version not in versions:
            raise NotFound(f"model {name} has no version {version[:20]!r}, only {', '.join(versions)}")
        return versions[version]

    async def infer(self, model: Model, request: Inference) -> dict[str, np.ndarray]:
        """Check a request, run it, and return the requested outputs by name.

        Raises:
            ServeError: the request was refused, failed, or timed out.
        """
        feeds = model.contract.check(request.tensors, request.outputs)
        limit = self.options.timeout_s
        outputs = await model.infer(feeds, min(limit, request.timeout_s or limit))
        return {name: outputs[name] for name in request.outputs or model.contract.outputs}

    @contextmanager
    def exchange(self, protocol: str, request_id: str) -> Iterator[Exchange]:
        """Context of one inference request: admits it, counts it, logs it, and turns any error into a `ServeError`.

        Args:
            protocol: ``http`` or ``grpc``.
            request_id: id of the request in the log.

        Raises:
            Unavailable: the server is shutting down.
            ServeError: raised inside the context; any other exception is logged with its type and becomes one.
        """
        exchange = Exchange(protocol, request_id)
        self._open.add(exchange)
        try:
            if self.draining:
                raise Unavailable("the server is shutting down")
            yield exchange
        except ServeError as error:
            exchange.status, exchange.error = error.status, error.message
            raise
        except asyncio.CancelledError:
            exchange.status, exchange.error = 499, "the client went away"  # nginx's status; nobody receives it
            raise
        except Exception as error:
            exchange.status, exchange.error = 500, f"{type(error).__name__}: {error}"
            raise ServeError("internal error, see the server's log") from error
        finally:
            self._open.discard(exchange)
            self._changed.set()
            self._record(exchange)

    def _model(self, name: str, version: str, bundle: Bundle) -> Model:
        contract = Contract.of(bundle, name, version, self.options.max_batch)
        return Model(bundle, contract, self.options, self.metrics.of(name, version))

    def _successor(self, name: str, version: str, bundle: Bundle) -> Model:
        """The model that serves a bundle after a reload: the one that does so already, or a new one."""
        served = self.models.get(name, {}).get(version)
        same = served is not None and served.digest == bundle.digest and served.path == bundle.path
        return served if served is not None and same else self._model(name, version, bundle)

    async def _retire(self, model: Model) -> None:
        """Stop a model that no new request finds, once those that found it are answered."""
        if not await self._finished(lambda: all(exchange.model is not model for exchange in self._open)):
            log("gave up waiting", level=logging.WARNING, model=model.contract.name, version=model.contract.version)
        await model.stop()
        self._retiring.discard(model)

    async def _finished(self, condition: Callable[[], bool]) -> bool:
        """Wait until requests have ended so that a condition holds; False if it takes longer than the grace period."""
        try:
            async with asyncio.timeout(self.options.grace_s):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    def _names(self) -> dict[str, list[str]]:
        return {name: list(versions) for name, versions in self.models.items()}

    def _digests(self) -> dict[str, dict[str, str]]:
        return {
            name: {version: model.digest[:12] for version, model in versions.items()}
            for name, versions in self.models.items()
        }

    def _record(self, exchange: Exchange) -> None:
        seconds = monotonic() - exchange.started
        model = exchange.model
        name, version = (model.contract.name, model.contract.version) if model is not None else ("", "")
        self.metrics.requests.labels(name, version, exchange.protocol, str(exchange.status)).inc()
        if model is not None:
            model.record(seconds, ok=exchange.status == 200)
        log(
            "request",
            level=logging.ERROR if exchange.status in (500, 504) else logging.INFO,
            request_id=exchange.request_id,
            protocol=exchange.protocol,
            model=name or None,
            version=version or None,
            status=exchange.status,
            ms=round(seconds * 1e3, 3),
            error=exchange.error,
        )


async def _start(models: Sequence[Model]) -> None:
    """Start models side by side; if one fails, stop the others.

    Raises:
        TrtkpError: an engine cannot run on this machine.
    """
    try:
        async with asyncio.TaskGroup() as group:
            for model in models:
                group.create_task(model.start())
    except BaseException as error:  # also if the server ends meanwhile
        await asyncio.gather(*(model.stop() for model in models))
        if isinstance(error, ExceptionGroup):
            raise error.exceptions[0] from None
        raise

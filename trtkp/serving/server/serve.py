"""Run the server: HTTP and gRPC in one event loop, from the start of the workers to the end of the last request."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import uvicorn

from trtkp.errors import InputError
from trtkp.serving.addresses import Addresses
from trtkp.serving.admission.connections import Connections
from trtkp.serving.admission.deadlines import Deadlines
from trtkp.serving.admission.descriptors import affordable_connections
from trtkp.serving.logs import log, start_logging, stop_logging
from trtkp.serving.models.service import Service
from trtkp.serving.options import ServeOptions
from trtkp.serving.protocol.connection import HttpConnections
from trtkp.serving.protocol.http2.server import Http2Server
from trtkp.serving.protocol.rest import make_app
from trtkp.serving.protocol.rpc import rpc_methods
from trtkp.serving.worker.process import descriptors

__all__ = ["serve"]


def serve(
    bundles: Sequence[Path],
    options: ServeOptions | None = None,
    on_ready: Callable[[Addresses], None] | None = None,
) -> None:
    """Serve bundles until SIGTERM or SIGINT.

    The first signal refuses new requests and waits for those in progress; a second one ends the server without waiting.
    SIGHUP reloads the bundles.

    Args:
        bundles: bundles, or directories of numbered bundles.
        options: addresses, batching, limits and credentials; None for the defaults.
        on_ready: called when every model has finished its warm-up.

    Raises:
        InputError: a bundle, option, port or certificate cannot be used.
        JobError: an engine cannot run on this machine.

    Example:
        ```python
        serve([Path("kep/")], on_ready=lambda addresses: print(addresses.http))  # http://127.0.0.1:8000
        ```
    """
    options = options or ServeOptions()
    start_logging(options.log_level)
    try:
        import uvloop
    except ImportError:  # uvloop has no build for Windows
        run: Any = asyncio.run
    else:
        run = uvloop.run
    run(_serve(bundles, options, on_ready))


async def _serve(bundles: Sequence[Path], options: ServeOptions, on_ready: Callable[[Addresses], None] | None) -> None:
    service = Service(bundles, options)
    token = options.token()
    if token is None and not _is_loopback(options.host):
        log("anybody who reaches this port may use it", level=logging.WARNING, host=options.host)
    workers = len(service.all_models) * descriptors(options.instances)
    connections = Connections(affordable_connections(options.connections, workers))
    service.metrics.watch_connections(lambda: len(connections))
    server = _HttpServer(_http_config(service, options, token), HttpConnections(connections, Deadlines.of(options)))
    stop = _StopSignals()
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(_reload_on_hangup(service, stop))
        http = _listen(options.host, options.port)
        stack.callback(http.close)
        rpc, rpc_socket, rpc_port = None, None, 0
        if options.grpc_port is not None:
            rpc_socket = _listen(options.host, options.grpc_port)
            stack.callback(rpc_socket.close)
            rpc_port = rpc_socket.getsockname()[1]
        listening = asyncio.create_task(server.serve([http]))  # before the workers: health probes get "not ready yet"
        if rpc_socket is not None:
            rpc = Http2Server(
                rpc_methods(service), Deadlines.of(options), service.memory, connections, service.turns, token
            )
            rpc.listen(rpc_socket, _tls(options))
        try:
            starting = asyncio.create_task(service.start())
            await _first(starting, asyncio.create_task(stop.wait()), listening)
            if starting.done():
                starting.result()
                if on_ready is not None:
                    on_ready(_addresses(service, options, http, rpc_port))
                await _first(asyncio.create_task(stop.wait()), listening)
            else:
                starting.cancel()
                await asyncio.gather(starting, return_exceptions=True)
            if rpc is not None:
                rpc.drain()
            await _first(asyncio.create_task(service.drain()), asyncio.create_task(stop.wait(2)))
        finally:
            server.should_exit = True
            server.force_exit = stop.seen > 1
            if rpc is not None:
                await rpc.stop(0.0 if stop.seen > 1 else 1.0)
            await asyncio.gather(listening, return_exceptions=True)
            await service.stop()
            log("stopped")
            stop_logging()


class _HttpServer(uvicorn.Server):
    """Uvicorn with our own connections, and without its signal handlers: requests are drained before it shuts down."""

    def __init__(self, config: uvicorn.Config, connections: HttpConnections) -> None:
        super().__init__(config)
        self._connections = connections
        self._close: Callable[[], None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.servers = []
        [listener] = sockets or []
        self._close = self._connections.accept(listener, self.config, self.server_state, self.config.ssl)
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._close is not None:
            self._close()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.contextmanager
def _reload_on_hangup(service: Service, stop: _StopSignals) -> Iterator[None]:
    """Context in which SIGHUP reloads the bundles.

    The system also sends it when a terminal is closed, which ends the programs that were started there, this one too
    unless it was started by ``nohup``.
    """
    loop, reloads = asyncio.get_running_loop(), set[asyncio.Task[bool]]()
    ends_with_terminal = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN and _has_terminal()

    def reload() -> None:
        if ends_with_terminal and not _has_terminal():
            if not stop.seen:
                stop.count()
            return
        task = asyncio.ensure_future(service.reload())
        reloads.add(task)  # the loop itself keeps only a weak reference to a task
        task.add_done_callback(reloads.discard)

    loop.add_signal_handler(signal.SIGHUP, reload)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        for task in reloads:
            task.cancel()


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


class _StopSignals:
    """Counts the SIGTERM and SIGINT signals received."""

    def __init__(self) -> None:
        self.seen = 0
        self._changed = asyncio.Condition()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.count)

    def count(self) -> None:
        """Count a signal."""
        self._counting = asyncio.ensure_future(self._count())

    async def wait(self, count: int = 1) -> None:
        """Return once ``count`` signals have been received."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.seen >= count)

    async def _count(self) -> None:
        async with self._changed:
            self.seen += 1
            self._changed.notify_all()


async def _first(*tasks: asyncio.Task[Any]) -> None:
    """Wait until one of the tasks is done; the others keep running and end with the event loop."""
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)


def _http_config(service: Service, options: ServeOptions, token: str | None) -> uvicorn.Config:
    config = uvicorn.Config(
        make_app(service, token),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=int(Deadlines.of(options).idle_s),
        timeout_graceful_shutdown=5,  # requests were drained before; this is for connections that stay open
        ssl_certfile=options.tls_cert,
        ssl_keyfile=options.tls_key,
    )
    try:
        config.load()
    except OSError as error:  # includes ssl.SSLError
        raise InputError(f"TLS cannot be set up: {error}", file=options.tls_cert) from None
    return config


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)  # Uvicorn's default backlog
    except (OSError, UnicodeError) as error:  # UnicodeError: not a valid host name
        message = f"cannot listen on {host} port {port}: {getattr(error, 'strerror', None) or error}"
        raise InputError(message, remedy="choose another --host or --port") from None
    return listener


def _tls(options: ServeOptions) -> ssl.SSLContext | None:
    """The certificate for gRPC; None without TLS. Uvicorn has loaded the files before, so they are right."""
    if options.tls_cert is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(options.tls_cert, options.tls_key)
    context.set_alpn_protocols(["h2"])
    return context


def _addresses(service: Service, options: ServeOptions, http: socket.socket, grpc_port: int) -> Addresses:
    host = f"[{options.host}]" if ":" in options.host else options.host
    scheme = "https" if options.tls_cert is not None else "http"
    return Addresses(
        http=f"{scheme}://{host}:{http.getsockname()[1]}",
        grpc=f"{host}:{grpc_port}" if grpc_port else None,
        models={name: list(versions) for name, versions in service.models.items()},
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

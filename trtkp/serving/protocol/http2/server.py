"""The gRPC server: its listening socket, its connections, and their turns in the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections import deque
from collections.abc import Coroutine, Iterator, Mapping
from time import monotonic, perf_counter
from typing import Any

from trtkp.serving.admission.accept import Acceptor
from trtkp.serving.admission.connections import Connections
from trtkp.serving.admission.deadlines import Deadlines
from trtkp.serving.admission.memory import Memory
from trtkp.serving.admission.turns import Turns
from trtkp.serving.logs import log
from trtkp.serving.protocol.http2.call import Method
from trtkp.serving.protocol.http2.connection import Connection

__all__ = ["Http2Server"]

#: Seconds between two looks at all connections for what took too long.
_SWEEP_S = 0.5
#: Bytes that are read from a connection before others get their turn.
_READ_BYTES = 1 << 17
#: Seconds of a turn of the event loop for frames that had to wait.
_TURN_S = 0.005


class Http2Server:
    """Serves gRPC methods. Made in the running event loop; `listen` starts it.

    Args:
        methods: the methods by their paths, such as ``/grpc.health.v1.Health/Check``.
        deadlines: how long clients may take.
        memory: counts what calls hold.
        connections: holds the limit of connections.
        turns: turns of long work.
        token: bearer token that methods that are not open require; None for no token.
    """

    def __init__(
        self,
        methods: Mapping[str, Method],
        deadlines: Deadlines,
        memory: Memory,
        connections: Connections,
        turns: Turns,
        token: str | None = None,
    ) -> None:
        self.methods = methods
        self.deadlines = deadlines
        self.memory = memory
        self.connections = connections
        self.turns = turns
        self.token = token
        self.loop = asyncio.get_running_loop()
        self._made: set[Connection] = set()
        self.buffer = memoryview(bytearray(_READ_BYTES))  # into which every connection reads, one after the other
        self._changed = asyncio.Event()  # calls or connections have ended
        self._line: deque[Connection] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None
        self._acceptor: Acceptor | None = None
        self._sweeping: asyncio.Task[None] | None = None

    def listen(self, listener: socket.socket, context: ssl.SSLContext | None = None) -> None:
        """Accept connections from a socket that is bound and listens; it is closed at the end."""
        self._listener = listener
        self._acceptor = Acceptor(
            listener, lambda link: Connection(self, link), self.connections, context, self.deadlines.step_s
        )
        self._sweeping = self.loop.create_task(self._sweep())

    def drain(self) -> None:
        """Ask all clients to make new calls elsewhere."""
        for connection in self._made:
            connection.drain()

    async def stop(self, grace_s: float) -> None:
        """Accept nothing more, wait so long for calls in progress, and end all connections."""
        if self._acceptor is not None:
            self._acceptor.close()
        if self._listener is not None:
            self._listener.close()
        for connection in list(self._made):
            connection.close_when_idle()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                while any(connection.calls for connection in self._made):
                    self._changed.clear()
                    await self._changed.wait()
        for connection in list(self._made):
            connection.close()
        for task in self._tasks:
            task.cancel()
        if self._sweeping is not None:
            self._sweeping.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- for connections ----------------------------------------------------------------------------------------------

    def remember(self, connection: Connection) -> None:
        """Look after a connection that was made."""
        self._made.add(connection)

    def forget(self, connection: Connection) -> None:
        """Forget a connection that has ended."""
        self._made.discard(connection)
        self.connections.remove(connection)
        self._changed.set()

    def idle(self, connection: Connection) -> None:
        """Note that all calls of a connection were answered."""
        self._changed.set()

    def run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start the work of a call."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def queue(self, connection: Connection) -> None:
        """Give a connection whose frames wait a further turn, after all others that wait."""
        if not self._line:
            self.loop.call_soon(self._work)
        self._line.append(connection)

    def _work(self) -> None:
        end = perf_counter() + _TURN_S
        line, self._line = self._line, deque()
        while line and perf_counter() < end:
            connection = line.popleft()
            connection.queued = False
            with _guarded(connection):
                connection.work()
        waiting = bool(self._line)
        self._line.extendleft(reversed(line))
        if line and not waiting:
            self.loop.call_soon(self._work)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            now = monotonic()
            for connection in list(self._made):
                with _guarded(connection):
                    connection.check(now)


@contextlib.contextmanager
def _guarded(connection: Connection) -> Iterator[None]:
    """Context in which a fault ends one connection, and not the work for all others."""
    try:
        yield
    except Exception as error:  # a fault of the server
        log("connection failed", level=logging.ERROR, error=f"{type(error).__name__}: {error}")
        connection.drop()

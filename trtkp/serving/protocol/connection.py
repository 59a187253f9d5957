"""HTTP connections that are limited in number, in time, and in the size of a request's head.

Uvicorn limits how long a connection may be idle between requests, and nothing else: clients that send the head of a
request byte by byte, never read their answers, or send thousands of requests at once could occupy it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import ssl
from collections.abc import Callable
from time import monotonic

import uvicorn
from httptools import HttpParserError
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from trtkp.serving.admission.accept import Acceptor
from trtkp.serving.admission.connections import Connections
from trtkp.serving.admission.deadlines import Deadlines

__all__ = ["HEALTH_PATHS", "HttpConnection", "HttpConnections"]

#: Where questions about the server's health go, which are always answered.
HEALTH_PATHS = "/v2/health/"

#: Most bytes and fields of a head (8 KiB and 100 are usual in other servers), and requests sent ahead of an answer.
_HEAD_BYTES, _FIELDS, _AHEAD = 1 << 15, 100, 8
#: Seconds between two looks at all connections for what took too long.
_SWEEP_S = 0.5


class HttpConnections:
    """All connections of the HTTP server.

    Args:
        limit: holds the limit of connections.
        deadlines: how long clients may take.
    """

    def __init__(self, limit: Connections, deadlines: Deadlines) -> None:
        self.limit = limit
        self.deadlines = deadlines
        self.made: set[HttpConnection] = set()

    def accept(
        self, listener: socket.socket, config: uvicorn.Config, state: ServerState, context: ssl.SSLContext | None
    ) -> Callable[[], None]:
        """Accept connections from a socket that listens.

        Returns:
            A function that ends this; the connections stay.
        """
        acceptor = Acceptor(
            listener,
            lambda link: HttpConnection(self, link, config, state),
            self.limit,
            context,
            self.deadlines.step_s,
        )
        sweep = asyncio.get_running_loop().create_task(self._sweep())

        def close() -> None:
            acceptor.close()
            sweep.cancel()

        return close

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            now = monotonic()
            for connection in list(self.made):
                connection.check(now)


class HttpConnection(HttpToolsProtocol):
    """One connection. It can make room for others unless the server computes an answer for it.

    Args:
        server: all connections.
        link: the socket.
        config: Uvicorn's configuration.
        state: Uvicorn's state.
    """

    def __init__(
        self, server: HttpConnections, link: socket.socket, config: uvicorn.Config, state: ServerState
    ) -> None:
        super().__init__(config, state, {"connection": self})
        self._server = server
        self._link = link
        self._until: float | None = monotonic() + server.deadlines.step_s  # of the head, or of an idle connection
        self._connected = False
        self._head = self._fields = 0
        self._in_head = False
        self._goes_on = False  # whether what arrived last held a part of a body, or began or ended something
        self._apart = 0  # bytes since then: extensions of chunks, and fields after a body
        self._unread = 0  # bytes that the client has not read yet
        self._read_at = monotonic()
        self._all_read_by = math.inf  # of the end of an answer; `Answer` limits the time before

    @property
    def health_only(self) -> bool:
        """Whether only questions about the server's health are answered."""
        return self._server.limit.health_only(self)

    def drop(self) -> None:
        """End the connection at once, whatever the client has not read yet."""
        if self._connected:
            self.transport.abort()  # closing would wait for the client
        else:  # during the handshake
            with contextlib.suppress(OSError):
                self._link.shutdown(socket.SHUT_RDWR)

    def check(self, now: float) -> None:
        """Drop the connection if the client takes too long to send a head, or to read."""
        unread = self.transport.get_write_buffer_size()
        if unread == 0 or unread != self._unread:
            if unread != self._unread:
                self._server.limit.touch(self)
            self._unread, self._read_at = unread, now
        stuck = unread > 0 and (now - self._read_at > self._server.deadlines.step_s or now > self._all_read_by)
        if stuck or (self._until is not None and now > self._until):
            self.drop()

    # --- what Uvicorn is told ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Look after the connection."""
        super().connection_made(transport)
        self._connected = True
        self._server.made.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._server.made.discard(self)
        self._server.limit.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what arrived."""
        self._server.limit.touch(self)
        self._goes_on = False
        super().data_received(data)
        self._apart = 0 if self._goes_on else self._apart + len(data)
        if self._apart > 2 * _HEAD_BYTES and not self._in_head and not self.transport.is_closing():
            self.send_400_response("the fields after the body are too large")
        # The parser tells of a field when it is complete, and keeps what it has of it however long it grows.
        if self._in_head:
            self._head += len(data)
            if self._head > 2 * _HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response("the head is too large")

    def on_message_begin(self) -> None:
        """Start the time of a head, unless an earlier request is in progress."""
        super().on_message_begin()
        self._head = self._fields = 0
        self._in_head = self._goes_on = True
        if self._until is not None:  # no request is in progress
            self._until = monotonic() + self._server.deadlines.step_s

    def on_url(self, url: bytes) -> None:
        """Count the bytes of a path."""
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a field."""
        super().on_header(name, value)
        self._fields += 1
        self._count(len(name) + len(value))

    def on_headers_complete(self) -> None:
        """Begin a request, or end the connection if too many wait already."""
        self._until = None
        self._in_head = False
        self._all_read_by = math.inf
        super().on_headers_complete()
        if len(self.pipeline) > _AHEAD:
            self.drop()
            raise HttpParserError("too many requests ahead of an answer")

    def on_body(self, body: bytes) -> None:
        """Take a part of a body."""
        self._goes_on = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that the server has all of a request, and that from now on it is not the client that takes time."""
        self._goes_on = True
        super().on_message_complete()
        if not self.cycle.response_complete:
            self._server.limit.busy(self)

    def pause_writing(self) -> None:
        """Note that the server waits for the client to read."""
        super().pause_writing()
        self._server.limit.idle(self)

    def on_response_complete(self) -> None:
        """Become idle."""
        super().on_response_complete()
        if self.cycle.response_complete:  # none was sent ahead
            deadlines, now = self._server.deadlines, monotonic()
            self._until = now + deadlines.idle_s
            self._all_read_by = now + deadlines.transfer_s(self.transport.get_write_buffer_size())
            self._server.limit.idle(self)

    def send_400_response(self, msg: str) -> None:
        """Say what is wrong, unless nobody listens."""
        if not self.transport.is_closing():
            super().send_400_response(msg)

    def _count(self, size: int) -> None:
        self._head += size
        if self._head > _HEAD_BYTES or self._fields > _FIELDS:
            raise HttpParserError("the head is too large")

"""HTTP connections with a time limit for the head of a request.

Uvicorn limits how long a connection may be idle between requests, but not how long a client may take to send the head
of a request. Clients that send it byte by byte could occupy every connection (the Slowloris attack).
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["timed_connections"]


def timed_connections(seconds: float) -> type[HttpToolsProtocol]:
    """Make a connection class that closes a connection when the head of a request takes longer than ``seconds``.

    The time starts when the connection opens, and again with the first byte of each later request.
    """

    class TimedConnection(HttpToolsProtocol):
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._await_head()

        def on_message_begin(self) -> None:
            self._await_head()
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._stop_waiting()
            super().on_headers_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def _await_head(self) -> None:
            self._stop_waiting()
            self._deadline = self.loop.call_later(seconds, self.transport.close)

        def _stop_waiting(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()

    return TimedConnection

"""Accept connections one by one, so that they can be limited."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Any

from trtkp.serving.admission.connections import Connections
from trtkp.serving.logs import log

__all__ = ["Acceptor"]

#: Connections that are accepted before others get their turn: 5 ms.
_ACCEPT = 64
#: Seconds until the next attempt when no descriptor is left.
_PAUSE_S = 0.5


class Acceptor:
    """Accepts connections from a socket that listens.

    It replaces the loop's own server, which accepts as many connections at once as wait, and with TLS tells of them
    after the handshake only: they could not be limited.

    Args:
        listener: the socket.
        make: makes a connection, which is an `asyncio.Protocol` and a `Link`, of an accepted socket.
        connections: holds the limit.
        context: for TLS; None without.
        handshake_s: seconds for TLS to begin.
    """

    def __init__(
        self,
        listener: socket.socket,
        make: Callable[[socket.socket], Any],
        connections: Connections,
        context: ssl.SSLContext | None,
        handshake_s: float,
    ) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._make = make
        self._connections = connections
        self._context = context
        self._handshake_s = handshake_s
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[None]] = set()
        self._open_to_all = True
        self._listen()

    def close(self) -> None:
        """Accept nothing more."""
        self._open_to_all = False
        self._loop.remove_reader(self._listener)
        for task in self._opening:
            task.cancel()

    def _listen(self) -> None:
        if self._open_to_all:
            self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        for _ in range(_ACCEPT):
            try:
                link, _address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:  # no descriptors are left, or the client has gone
                log("cannot accept a connection", level=logging.WARNING, error=error.strerror)
                self._loop.remove_reader(self._listener)
                self._loop.call_later(_PAUSE_S, self._listen)
                return
            link.setblocking(False)
            if _has_gone(link):
                link.close()
                continue
            connection = self._make(link)
            self._connections.add(connection)
            task = self._loop.create_task(self._open(connection, link))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self, connection: Any, link: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(
                lambda: connection,
                link,
                ssl=self._context,
                ssl_handshake_timeout=None if self._context is None else self._handshake_s,
            )
        except (OSError, TimeoutError, asyncio.CancelledError):  # the handshake failed, or the client has gone
            connection.drop()
            self._connections.remove(connection)


def _has_gone(link: socket.socket) -> bool:
    """Whether the client has closed or reset a connection before it was accepted.

    To find that out costs much less than to make a connection and to lose it. Clients that reset connections as fast
    as they can would fill the queue of the socket otherwise, and the system then lets new ones wait for a second.
    """
    try:
        return not link.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False  # nothing has come yet
    except OSError:
        return True

"""Connections are accepted one by one, and those whose client has gone are not made."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

from trtkp.serving.admission.accept import Acceptor
from trtkp.serving.admission.connections import Connections


class Link(asyncio.Protocol):
    """A connection that says when it is made."""

    def __init__(self, made: asyncio.Event) -> None:
        self._made = made

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._made.set()

    def drop(self) -> None:
        raise AssertionError("there is room for all")


def test_clients_that_have_gone() -> None:
    """Reset or closed before they were accepted: no connection is made of them; one that waits gets its own."""

    async def accept() -> tuple[int, int]:
        made, asked = asyncio.Event(), []
        connections = Connections(limit=100)
        with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
            for number in range(60):
                client = socket.create_connection(listener.getsockname())
                if number % 2:  # reset, the other half is closed
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
            with socket.create_connection(listener.getsockname()):

                def make(link: socket.socket) -> Any:
                    asked.append(link)
                    return Link(made)

                acceptor = Acceptor(listener, make, connections, None, 1.0)
                async with asyncio.timeout(10):
                    await made.wait()
                acceptor.close()
        return len(asked), len(connections)

    assert asyncio.run(accept()) == (1, 1)

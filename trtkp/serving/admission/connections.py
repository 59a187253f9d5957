"""The connections that a server holds at once."""

from __future__ import annotations

from typing import Protocol

__all__ = ["RESERVE", "Connections", "Link"]

#: Connections beyond the limit, for questions about the server's health only.
RESERVE = 32


class Link(Protocol):
    """A connection, as this module sees it."""

    def drop(self) -> None:
        """End the connection at once, whatever its state."""


class Connections:
    """Holds the limit of connections, over all protocols.

    When it is reached, a new connection takes the place of the one whose client has done nothing for the longest time:
    sent no bytes of a request, read none of an answer. Connections for which the server is computing stay. If all are
    such, the new one is taken in a small reserve, in which only questions about the server's health are answered, and
    the oldest of the reserve is dropped for the next. So a health probe can always connect.

    Args:
        limit: connections at once, besides the reserve.

    Example:
        >>> class Printing:
        ...     def drop(self):
        ...         print("dropped")
        >>> connections = Connections(limit=1)
        >>> first, second, third = Printing(), Printing(), Printing()
        >>> connections.add(first)
        >>> connections.add(second)
        dropped
        >>> connections.busy(second)
        >>> connections.add(third)
        >>> connections.health_only(second), connections.health_only(third)
        (False, True)
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._busy: set[Link] = set()
        self._idle: dict[Link, None] = {}  # the server waits for their clients; the last that did something comes last
        self._reserve: dict[Link, None] = {}

    def __len__(self) -> int:
        return len(self._busy) + len(self._idle) + len(self._reserve)

    def add(self, link: Link) -> None:
        """Take in a connection that has just been accepted, and drop another for it if needed."""
        if len(self._busy) + len(self._idle) < self._limit:
            self._idle[link] = None
        elif self._idle:
            self._drop_oldest(self._idle)
            self._idle[link] = None
        else:
            if len(self._reserve) >= RESERVE:
                self._drop_oldest(self._reserve)
            self._reserve[link] = None

    def remove(self, link: Link) -> None:
        """Forget a connection that has ended."""
        self._busy.discard(link)
        self._idle.pop(link, None)
        self._reserve.pop(link, None)

    def busy(self, link: Link) -> None:
        """Note that the server has all of a request and computes its answer."""
        if link in self._idle:
            del self._idle[link]
            self._busy.add(link)

    def idle(self, link: Link) -> None:
        """Note that nothing is computed for a connection any more."""
        if link in self._busy:
            self._busy.remove(link)
            self._idle[link] = None

    def touch(self, link: Link) -> None:
        """Note that the client has sent or read something."""
        if link in self._idle:
            del self._idle[link]
            self._idle[link] = None

    def health_only(self, link: Link) -> bool:
        """Whether only questions about the server's health are answered on a connection: none was free until now."""
        if link in self._reserve and len(self._busy) + len(self._idle) < self._limit:
            del self._reserve[link]
            self._idle[link] = None
        return link in self._reserve

    @staticmethod
    def _drop_oldest(links: dict[Link, None]) -> None:
        oldest = next(iter(links))
        del links[oldest]
        oldest.drop()

"""Turns at long work on the event loop."""

from __future__ import annotations

import asyncio
from types import TracebackType

__all__ = ["Turns"]


class Turns:
    """Lets one request at a time do a slice of long work, in the order in which they ask.

    Without it, a hundred requests that each work for 2 ms between two pauses would stop everything else for 200 ms,
    since the event loop runs all that is ready before it looks at its sockets again.

    Example:
        >>> async def work(turns: Turns) -> None:
        ...     for _ in range(3):
        ...         async with turns:
        ...             sum(range(1000))
        >>> asyncio.run(work(Turns()))
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> None:
        await self._lock.acquire()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                await asyncio.sleep(0)  # the loop looks at its sockets before the next turn
        finally:
            self._lock.release()

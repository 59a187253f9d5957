"""How long work keeps the event loop from others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

__all__ = ["longest_stall"]


def longest_stall(work: Callable[[], Coroutine[Any, Any, Any]], tries: int = 3) -> float:
    """Seconds of the longest turn of the loop while the work runs beside it; the best of some tries.

    Other programs on the machine can delay one try.
    """

    async def once() -> float:
        worst, done = 0.0, asyncio.create_task(work())
        while not done.done():
            start = time.perf_counter()
            await asyncio.sleep(0)
            worst = max(worst, time.perf_counter() - start)
        await done
        return worst

    return min(asyncio.run(once()) for _ in range(tries))

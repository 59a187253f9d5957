"""Requests that wait, and the batches they leave in.

A batch begins with the oldest request. While an instance is free it leaves when it is full or when that request has
waited for the longest delay, whichever is first; while all instances are busy requests gather anyway.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from time import monotonic

import numpy as np

from trtkp.serving.contract import Feeds
from trtkp.serving.errors import QueueFull, ServeError
from trtkp.shapes import Shape

__all__ = ["Batcher", "Job"]


@dataclass(eq=False)
class Job:
    """A checked request.

    Attributes:
        feeds: its inputs.
        rows: its share of a batch.
        key: jobs of one key can share a run.
        answer: its outputs, or a `ServeError`; done early when nobody waits for it any more.
        arrived: monotonic seconds.
    """

    feeds: Feeds
    rows: int
    key: tuple[Shape, ...]
    answer: asyncio.Future[dict[str, np.ndarray]]
    arrived: float = field(default_factory=monotonic)

    def fail(self, error: ServeError) -> None:
        """Answer with an error, unless it is answered."""
        if not self.answer.done():
            self.answer.set_exception(error)


class Batcher:
    """The queue of one model.

    Args:
        rows: most rows of a batch; None: every job runs alone.
        delay: seconds that the oldest job waits for others.
        limit: most jobs that wait.
    """

    def __init__(self, rows: int | None, delay: float, limit: int) -> None:
        self._rows = rows
        self._delay = delay if rows is not None else 0.0
        self._limit = limit
        self._jobs: deque[Job] = deque()
        self._changed = asyncio.Event()
        self._turn = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._jobs)

    def check_room(self) -> None:
        """Raises QueueFull: no room for another job."""
        if len(self._jobs) >= self._limit:
            raise QueueFull(f"{self._limit} requests are waiting already", remedy="try again later")

    def put(self, job: Job) -> None:
        """Append a job.

        Raises:
            QueueFull: no room.
        """
        self.check_room()
        self._jobs.append(job)
        self._changed.set()

    async def take(self) -> list[Job]:
        """The next batch, once it is due; at least one job."""
        async with self._turn:
            while True:
                self._changed.clear()
                while self._jobs and self._jobs[0].answer.done():
                    self._jobs.popleft()
                if not self._jobs:
                    await self._changed.wait()
                    continue
                remaining = self._jobs[0].arrived + self._delay - monotonic()
                if remaining <= 0 or self._is_full():
                    return self._leave()
                try:
                    await asyncio.wait_for(self._changed.wait(), remaining)
                except TimeoutError:
                    continue

    def fail_all(self, error: ServeError) -> None:
        """Answer every waiting job with an error."""
        while self._jobs:
            self._jobs.popleft().fail(error)

    def _is_full(self) -> bool:
        key = self._jobs[0].key
        return self._rows is None or sum(job.rows for job in self._jobs if job.key == key) >= self._rows

    def _leave(self) -> list[Job]:
        """The oldest job, and those of its key that still fit, in order."""
        batch = [self._jobs.popleft()]
        room = (self._rows or 0) - batch[0].rows
        left: deque[Job] = deque()
        while self._jobs and room > 0:
            job = self._jobs.popleft()
            if job.answer.done():
                continue
            if job.key != batch[0].key:
                left.append(job)
            elif job.rows > room:
                left.append(job)
                break
            else:
                batch.append(job)
                room -= job.rows
        self._jobs.extendleft(reversed(left))
        return batch

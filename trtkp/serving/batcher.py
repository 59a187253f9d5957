"""The queue of one model, which groups waiting requests into batches.

A batch starts with the oldest request. While an instance is free, the batch leaves when it is full or when its oldest
request has waited for the maximum delay, whichever comes first. While all instances are busy, requests accumulate, and
the next free instance takes as many as fit.
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
    """A request that passed all checks.

    Attributes:
        feeds: the inputs by name.
        rows: number of rows it adds to a batch.
        key: jobs with the same key can share a batch.
        answer: future of the outputs or of a `ServeError`. It is done early if the client gave up or timed out.
        arrived: time of arrival in seconds, by the monotonic clock.
    """

    feeds: Feeds
    rows: int
    key: tuple[Shape, ...]
    answer: asyncio.Future[dict[str, np.ndarray]]
    arrived: float = field(default_factory=monotonic)

    def fail(self, error: ServeError) -> None:
        """Answer with an error, unless the job is answered already."""
        if not self.answer.done():
            self.answer.set_exception(error)


class Batcher:
    """The queue of one model.

    Args:
        rows: largest number of rows in a batch; None if every job runs alone.
        delay: seconds that the oldest job waits for others while an instance is free.
        limit: largest number of waiting jobs.
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
        """Check that one more job can be queued.

        Raises:
            QueueFull: the queue is full.
        """
        if len(self._jobs) >= self._limit:
            raise QueueFull(f"the queue is full: {self._limit} requests are waiting", remedy="try again later")

    def put(self, job: Job) -> None:
        """Append a job.

        Raises:
            QueueFull: the queue is full.
        """
        self.check_room()
        self._jobs.append(job)
        self._changed.set()

    def remove(self, job: Job) -> None:
        """Remove a job that nobody waits for any more, if it is still queued."""
        if job in self._jobs:  # the error of `remove` would hold the tensors as text, which takes 2 ms to write
            self._jobs.remove(job)

    async def take(self) -> list[Job]:
        """Wait for the next batch and return its jobs, at least one."""
        # One taker at a time: two free instances must not split the requests that one batch could hold.
        async with self._turn:
            while True:
                self._changed.clear()  # before looking at the queue, so that a job put meanwhile is not missed
                while self._jobs and self._jobs[0].answer.done():
                    self._jobs.popleft()
                if not self._jobs:
                    await self._changed.wait()
                    continue
                remaining = self._jobs[0].arrived + self._delay - monotonic()
                if remaining <= 0 or self._is_full():
                    return self._pop_batch()
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

    def _pop_batch(self) -> list[Job]:
        """Remove and return the oldest job, and the jobs with its key that still fit, in order.

        The search stops at the first such job that is too large, so that smaller ones cannot overtake it for ever.
        """
        batch = [self._jobs.popleft()]
        room = (self._rows or 0) - batch[0].rows
        left: deque[Job] = deque()  # jobs that stay, in their order
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

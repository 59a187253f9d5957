"""Which requests leave together, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any

import numpy as np
import pytest

from trtkp.serving.batcher import Batcher, Job
from trtkp.serving.errors import QueueFull, Unavailable


def in_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """A test that runs in an event loop of its own."""

    def run() -> None:
        asyncio.run(test())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


def job(rows: int = 1, size: int = 8) -> Job:
    feeds = {"x": np.zeros((rows, size), np.float32)}
    return Job(feeds, rows, ((size,),), asyncio.get_running_loop().create_future())


@in_loop
async def test_full_batch_leaves_at_once() -> None:
    batcher = Batcher(rows=4, delay=60, limit=10)
    jobs = [job(2), job(1), job(1), job(1)]
    for one in jobs:
        batcher.put(one)
    assert await asyncio.wait_for(batcher.take(), 1) == jobs[:3]
    assert len(batcher) == 1


@in_loop
async def test_oldest_waits_no_longer_than_the_delay() -> None:
    """The delay is counted from the first, not the last: a batch is due as soon as its oldest has waited so long."""
    batcher = Batcher(rows=4, delay=60, limit=10)
    first, second = job(), job()
    first.arrived -= 59
    batcher.put(first)
    taking = asyncio.create_task(batcher.take())
    await asyncio.sleep(0)
    batcher.put(second)
    assert await asyncio.wait_for(taking, 30) == [first, second]
    assert monotonic() - first.arrived >= 60


@in_loop
async def test_without_delay_one_leaves_alone() -> None:
    batcher = Batcher(rows=4, delay=0, limit=10)
    batcher.put(job())
    assert len(await batcher.take()) == 1


@in_loop
async def test_order_is_kept_when_the_next_does_not_fit() -> None:
    batcher = Batcher(rows=4, delay=0, limit=10)
    jobs = [job(3), job(2), job(1)]
    for one in jobs:
        batcher.put(one)
    assert await batcher.take() == jobs[:1]  # the third would fit, but not before the second
    assert await batcher.take() == jobs[1:]


@in_loop
async def test_other_shapes_leave_by_themselves() -> None:
    batcher = Batcher(rows=4, delay=0, limit=10)
    jobs = [job(size=8), job(size=9), job(size=8), job(size=9)]
    for one in jobs:
        batcher.put(one)
    assert await batcher.take() == [jobs[0], jobs[2]]
    assert await batcher.take() == [jobs[1], jobs[3]]


@in_loop
async def test_without_batching_each_leaves_alone() -> None:
    batcher = Batcher(rows=None, delay=60, limit=10)
    batcher.put(job())
    batcher.put(job())
    assert len(await asyncio.wait_for(batcher.take(), 1)) == 1


@in_loop
async def test_given_up_jobs_do_not_run() -> None:
    batcher = Batcher(rows=4, delay=0, limit=10)
    jobs = [job() for _ in range(4)]
    for one in jobs:
        batcher.put(one)
    jobs[0].answer.cancel()
    jobs[2].fail(Unavailable("late"))
    assert await batcher.take() == [jobs[1], jobs[3]]
    assert isinstance(jobs[2].answer.exception(), Unavailable)


@in_loop
async def test_limit_and_fail_all() -> None:
    batcher = Batcher(rows=4, delay=60, limit=2)
    waiting = [job(), job()]
    for one in waiting:
        batcher.put(one)
    with pytest.raises(QueueFull, match="the queue is full: 2 requests are waiting; try again later"):
        batcher.put(job())
    batcher.fail_all(Unavailable("shutting down"))
    assert len(batcher) == 0
    for one in waiting:
        with pytest.raises(Unavailable, match="shutting down"):
            await one.answer


@in_loop
async def test_two_takers_share_the_work() -> None:
    batcher = Batcher(rows=2, delay=0, limit=100)
    taken: list[Job] = []

    async def taker() -> None:
        while True:
            taken.extend(await batcher.take())

    takers = [asyncio.create_task(taker()) for _ in range(3)]
    jobs = [job() for _ in range(50)]
    for one in jobs:
        batcher.put(one)
        await asyncio.sleep(0)
    await asyncio.sleep(0.05)
    assert len(taken) == 50
    assert set(map(id, taken)) == set(map(id, jobs))
    for task in takers:
        task.cancel()

"""Several runs of the study at a time, each after the one whose net it takes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Any

import torch

from benchmarks.accuracy.plan import Run

__all__ = ["in_turn"]

Row = dict[str, Any]


def in_turn(
    runs: Sequence[Run], done: set[str], work: Callable[[Run], Row], jobs: int, threads: int
) -> Iterator[tuple[Run, Row]]:
    """Every run, and its row, as they finish; that of one that did not get there has ``failed``, the reason.

    Args:
        runs: in the order in which they begin.
        done: names of the runs whose nets are there; grows.
        work: gives the row of a run; goes to other processes.
        jobs: runs at a time.
        threads: of all of them together.
    """
    left, running = list(runs), dict[Future[Row], Run]()
    # a process that was forked after PyTorch's threads began would hang
    with ProcessPoolExecutor(
        jobs, mp_context=get_context("spawn"), initializer=_start, initargs=(max(1, threads // jobs),)
    ) as pool:
        while True:
            ready = [run for run in left if run.start is None or run.start in done]
            for run in ready[: jobs - len(running)]:
                try:
                    running[pool.submit(work, run)] = run
                except BrokenProcessPool:
                    break  # another run took the processes with it
                left.remove(run)
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                run, row = running.pop(future), _row(future)
                if "failed" not in row:
                    done.add(run.name)
                yield run, row
    for run in left:
        missing = run.start is not None and run.start not in done
        yield run, {"failed": f"there is no {run.start}" if missing else "the processes are gone; run it again"}


def _row(future: Future[Row]) -> Row:
    error = future.exception()
    return future.result() if error is None else {"failed": f"{type(error).__name__}: {error}"}


def _start(threads: int) -> None:
    torch.set_num_threads(threads)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A run whose parent was killed would go on beside the one that is started in its place."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)

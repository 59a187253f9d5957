"""Execute several runs of the study at the same time, each after the run whose net it starts from."""

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
    """Yield every run with its row, in the order in which they finish. A failed run's row has ``failed``, the reason.

    Args:
        runs: the runs, in the order in which they should start.
        done: names of the runs that are done; finished runs are added.
        work: executes a run and gives its row; called in other processes.
        jobs: number of runs at the same time.
        threads: CPU threads of all runs together.
    """
    left, running = list(runs), dict[Future[Row], Run]()
    # spawn, not fork: a process that is forked after PyTorch has started its threads hangs
    with ProcessPoolExecutor(
        jobs, mp_context=get_context("spawn"), initializer=_start, initargs=(max(1, threads // jobs),)
    ) as pool:
        while True:
            ready = [run for run in left if run.start is None or run.start in done]
            for run in ready[: jobs - len(running)]:
                try:
                    running[pool.submit(work, run)] = run
                except BrokenProcessPool:
                    break  # a run was killed, and the pool with it
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
        yield run, {"failed": f"{run.start} is not done" if missing else "the processes were killed; run it again"}


def _row(future: Future[Row]) -> Row:
    error = future.exception()
    return future.result() if error is None else {"failed": f"{type(error).__name__}: {error}"}


def _start(threads: int) -> None:
    torch.set_num_threads(threads)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent ends. Otherwise it would train on beside the run that replaces it."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)

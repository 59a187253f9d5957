"""One served model: its queue and its worker process, which is restarted when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import numpy as np

from trtkp.bundle import Bundle
from trtkp.errors import TrtkpError
from trtkp.machine.cpu import usable_cores
from trtkp.serving.batcher import Batcher, Job
from trtkp.serving.contract import Contract, Feeds
from trtkp.serving.errors import ServeError, TimedOut, Unavailable
from trtkp.serving.logs import log
from trtkp.serving.models.metrics import ModelMetrics
from trtkp.serving.options import ServeOptions
from trtkp.serving.worker.process import Instance, WorkerProcess

__all__ = ["Model", "Statistics"]

#: Seconds between attempts to start a worker. The pause starts at the first value and doubles up to the second: a
#: crash is repaired quickly, and a bundle that cannot be opened does not keep a CPU busy.
_PAUSES = (0.1, 5.0)


@dataclass
class Statistics:
    """Totals since the start, as the protocol's statistics extension counts them; times are in nanoseconds."""

    success: int = 0
    success_ns: int = 0
    failed: int = 0
    failed_ns: int = 0
    queue_ns: int = 0
    compute_ns: int = 0
    rows: int = 0
    runs: int = 0


class Model:
    """One version of a model. It queues checked requests, sends them to its worker, and restarts a dead worker.

    Args:
        bundle: the bundle to serve.
        contract: its inputs, outputs and batch limits.
        options: batching, limits, instances and threads.
        metrics: the metrics of this model and version.

    Attributes:
        contract: as given.
        statistics: totals since the start.
        problem: why no worker can be started at the moment; empty if nothing is wrong.
    """

    def __init__(self, bundle: Bundle, contract: Contract, options: ServeOptions, metrics: ModelMetrics) -> None:
        self.contract = contract
        self.statistics = Statistics()
        self.problem = ""
        self._bundle = bundle
        self._options = options
        self._metrics = metrics
        rows = contract.batch[1] if contract.batch is not None else None
        self._batcher = Batcher(rows, options.max_delay_ms / 1e3, options.queue)
        self._worker: WorkerProcess | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def key(self) -> tuple[str, str]:
        """Name and version."""
        return self.contract.name, self.contract.version

    @property
    def path(self) -> Path:
        """Where the bundle is."""
        return self._bundle.path

    @property
    def digest(self) -> str:
        """The digest of the bundle that is served."""
        return self._bundle.digest

    def publish(self) -> None:
        """Let the metrics of this model and version show this object; the newest one after a reload."""
        self._metrics.watch(lambda: len(self._batcher), lambda: self.ready, lambda: self.worker_pid, self.digest)

    @property
    def ready(self) -> bool:
        """Whether a worker is running and has finished its warm-up."""
        return self._worker is not None

    @property
    def worker_pid(self) -> int | None:
        """Process id of the worker; None while there is none."""
        return self._worker.pid if self._worker is not None else None

    async def start(self) -> None:
        """Start the worker and wait for its warm-up; the model is ready afterwards.

        Raises:
            TrtkpError: the engine cannot run on this machine.
        """
        self._worker = await self._open()
        self._watch = asyncio.create_task(self._keep_running())

    async def stop(self) -> None:
        """Refuse the requests that still wait, and end the worker."""
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await self._watch
        self._batcher.fail_all(Unavailable("the server is shutting down"))
        if self._worker is not None:
            await self._worker.stop()
            self._worker = None

    def check_room(self) -> None:
        """Check that a request could be queued. Called before a body is read, so that a refusal costs little.

        Raises:
            Unavailable: there is no worker at the moment.
            QueueFull: the queue is full.
        """
        if self._worker is None:
            why = f": {self.problem}" if self.problem else ""
            raise Unavailable(f"model {self.contract.name} is not ready{why}", remedy="try again later")
        self._batcher.check_room()

    async def infer(self, feeds: Feeds, timeout_s: float) -> dict[str, np.ndarray]:
        """Queue one checked request and wait for its outputs.

        Args:
            feeds: the inputs by name.
            timeout_s: seconds to wait, queueing included.

        Raises:
            ServeError: the request was refused, failed, or timed out.
        """
        self.check_room()
        loop = asyncio.get_running_loop()
        job = Job(feeds, self.contract.rows(feeds), self.contract.key(feeds), loop.create_future())
        self._batcher.put(job)
        alarm = loop.call_later(timeout_s, job.fail, TimedOut(f"no answer within {timeout_s:g} s"))
        try:
            return await job.answer
        finally:
            alarm.cancel()
            self._batcher.remove(job)  # one that timed out holds its tensors, and a place in the queue

    def record(self, seconds: float, *, ok: bool) -> None:
        """Count a request and its time from arrival to answer; ``ok`` is False if it was refused or failed."""
        if ok:
            self._metrics.seconds.observe(seconds)
            self.statistics.success += 1
            self.statistics.success_ns += int(seconds * 1e9)
        else:
            self.statistics.failed += 1
            self.statistics.failed_ns += int(seconds * 1e9)

    async def _open(self) -> WorkerProcess:
        instances = self._options.instances
        # Instances compute at the same time: with all cores for each, their threads would compete.
        threads = self._options.threads or max(1, usable_cores() // instances)
        return await WorkerProcess.start(self._bundle, self.contract, instances, threads, self._options.device)

    async def _keep_running(self) -> None:
        """Send batches to the worker until it dies, then start another one; for ever."""
        while True:
            assert self._worker is not None
            feeding = [asyncio.create_task(self._feed(self._worker, one)) for one in self._worker.instances]
            try:
                await self._worker.ended.wait()
            finally:
                for task in feeding:
                    task.cancel()
                await asyncio.gather(*feeding, return_exceptions=True)
            worker, self._worker = self._worker, None
            status = await worker.stop()
            self._metrics.restarts.inc()
            log("worker died", level=logging.ERROR, **self._name, pid=worker.pid, status=status)
            self._worker = await self._reopen()
            log("worker restarted", level=logging.WARNING, **self._name, pid=self._worker.pid)

    async def _reopen(self) -> WorkerProcess:
        pause = _PAUSES[0]
        while True:
            try:
                worker = await self._open()
            except Exception as error:  # whatever it is, the next attempt may succeed
                problem = error.message if isinstance(error, TrtkpError) else type(error).__name__
                if problem != self.problem:  # once, not at every attempt
                    log("worker cannot start", level=logging.ERROR, **self._name, error=str(error) or problem)
                self.problem = problem  # for clients: what is wrong, but no path
            else:
                self.problem = ""
                return worker
            await asyncio.sleep(pause)
            pause = min(2 * pause, _PAUSES[1])

    async def _feed(self, worker: WorkerProcess, instance: Instance) -> None:
        """Send one batch after the other to an instance until the worker dies."""
        while True:
            jobs = await self._batcher.take()
            # The answer to all jobs that get no other below: `fail` does nothing for a job that was answered.
            error: ServeError = Unavailable("the worker died while it computed this request", remedy="try again")
            try:
                start = monotonic()
                results, milliseconds = await instance.run(jobs, self._options.timeout_s)
            except TimeoutError:  # a hanging engine cannot be interrupted, only its process can be killed
                error = Unavailable(f"the engine did not answer for {self._options.timeout_s:g} s and was restarted")
                worker.kill()
                return
            except Unavailable:  # dead, or out of step with the protocol, which only a new process mends
                worker.kill()
                return
            except ServeError as refusal:
                error = refusal
            except Exception as unexpected:
                error = ServeError("internal error, see the server's log")
                log(
                    "batch failed",
                    level=logging.ERROR,
                    **self._name,
                    error=f"{type(unexpected).__name__}: {unexpected}",
                )
            else:
                self._answer(jobs, results, start, milliseconds)
            finally:
                for job in jobs:
                    job.fail(error)

    def _answer(
        self, jobs: Sequence[Job], results: Sequence[dict[str, np.ndarray]], start: float, milliseconds: float
    ) -> None:
        for job, result in zip(jobs, results, strict=True):
            if not job.answer.done():  # it may have timed out while the batch ran
                job.answer.set_result(result)
            self._metrics.queue_seconds.observe(start - job.arrived)
            self.statistics.queue_ns += int((start - job.arrived) * 1e9)
        rows = sum(job.rows for job in jobs)
        self._metrics.compute_seconds.observe(milliseconds / 1e3)
        self._metrics.batch_rows.observe(rows)
        self.statistics.compute_ns += int(milliseconds * 1e6)
        self.statistics.rows += rows
        self.statistics.runs += 1

    @property
    def _name(self) -> dict[str, str]:
        return {"model": self.contract.name, "version": self.contract.version}

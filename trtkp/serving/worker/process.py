"""The server's side of a worker process: start it, send it batches, and notice its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import subprocess
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from trtkp.bundle import Bundle
from trtkp.errors import JobError
from trtkp.machine.gpu import environment_with
from trtkp.machine.processes import child_command
from trtkp.serving.batcher import Job
from trtkp.serving.contract import Contract
from trtkp.serving.errors import ServeError, Unavailable
from trtkp.serving.logs import log
from trtkp.serving.worker.arena import Arena, layout

__all__ = ["Instance", "WorkerProcess", "descriptors"]

_GONE = "the worker died while it computed this request"

#: Longest piece of a line that a worker writes and that is logged at once, in bytes.
_LINE = 4096


def descriptors(instances: int) -> int:
    """Return how many file descriptors the server needs to start a worker with this number of instances.

    Every instance takes two arenas and both ends of a socket, of which the worker's end is closed once the worker runs.
    The process takes two pipes, and `subprocess.Popen` a third one to report why a program could not be executed.
    """
    return 4 * instances + 6


class Instance:
    """The server's end of one execution context in a worker, which computes one batch at a time.

    It owns a socket for messages and two arenas for tensors. The arena of the inputs has the size of the largest batch
    from the start; the worker grows the arena of the outputs.
    """

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter
        _, size = layout((spec.name, spec.dtype, spec.high) for spec in contract.inputs.values())
        with contextlib.ExitStack() as made:  # closes the arenas if a later step fails
            self.inputs, self.outputs = made.enter_context(Arena.new()), made.enter_context(Arena.new())
            self.inputs.reserve(size)
            self._socket, self.worker_socket = socket.socketpair()
            made.pop_all()

    async def connect(self) -> dict[str, Any]:
        """Connect to the worker and return its first message."""
        self.worker_socket.close()
        self._reader, self._writer = await asyncio.open_unix_connection(sock=self._socket)
        return await self._receive()

    async def run(self, jobs: Sequence[Job], limit: float) -> tuple[list[dict[str, np.ndarray]], float]:
        """Compute a batch.

        Args:
            jobs: the jobs of the batch.
            limit: seconds to wait for the worker.

        Returns:
            The outputs of each job, and the milliseconds that the engine took.

        Raises:
            ServeError: the engine failed on the batch.
            Unavailable: the worker died, or it no longer follows the protocol.
            TimeoutError: the worker did not answer in time.
        """
        places = self._write(jobs)
        try:
            self._writer.write(json.dumps({"inputs": places}).encode() + b"\n")
            answer = await asyncio.wait_for(self._receive(), limit)
        except ConnectionError:
            raise Unavailable(_GONE, remedy="try again") from None
        if "error" in answer:
            raise ServeError(str(answer["error"]))
        try:
            outputs, milliseconds = self.outputs.views(answer["outputs"]), float(answer["ms"])
        except (
            LookupError,
            TypeError,
            ValueError,
            OverflowError,
            OSError,
        ):  # an engine has written over the worker's memory
            raise Unavailable(_GONE, remedy="try again") from None
        return self._split(jobs, outputs), milliseconds

    def close(self) -> None:
        """Close the socket, which ends the worker's thread, and close the arenas."""
        if hasattr(self, "_writer"):
            self._writer.close()
        for part in (self._socket, self.worker_socket, self.inputs, self.outputs):
            part.close()

    def _write(self, jobs: Sequence[Job]) -> list[Any]:
        """Write the rows of all jobs one after the other, then zeros up to the engine's smallest batch."""
        batch = self._contract.batch
        rows = sum(job.rows for job in jobs)
        padded = max(rows, batch[0]) if batch is not None else 0
        shapes = {name: value.shape for name, value in jobs[0].feeds.items()}
        if batch is not None:
            shapes = {name: (padded, *shape[1:]) for name, shape in shapes.items()}
        places, _ = layout((name, spec.dtype, shapes[name]) for name, spec in self._contract.inputs.items())
        for name, view in self.inputs.views(places).items():
            if batch is None:
                view[...] = jobs[0].feeds[name]
                continue
            np.concatenate([job.feeds[name] for job in jobs], out=view[:rows])
            view[rows:] = 0
        return places

    def _split(self, jobs: Sequence[Job], outputs: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
        if self._contract.batch is None:
            return [{name: value.copy() for name, value in outputs.items()}]
        # The results are copied below, because the next batch overwrites the arena.
        rows = max(sum(job.rows for job in jobs), self._contract.batch[0])
        for name, value in outputs.items():
            if len(value) != rows:
                raise ServeError(f"the engine returned {len(value)} rows of {name} for a batch of {rows}")
        results, row = [], 0
        for job in jobs:
            results.append({name: value[row : row + job.rows].copy() for name, value in outputs.items()})
            row += job.rows
        return results

    async def _receive(self) -> dict[str, Any]:
        try:
            line = await self._reader.readline()
            answer = json.loads(line)
        except ValueError:  # the worker died in the middle of a line, or sends something else
            raise ConnectionResetError from None
        if not isinstance(answer, dict):
            raise ConnectionResetError
        return answer


class WorkerProcess:
    """A running worker process with all instances of a model.

    Attributes:
        instances: its execution contexts.
        ended: set when the process has ended, for whatever reason.
    """

    def __init__(self, process: subprocess.Popen[bytes], instances: list[Instance]) -> None:
        self._process = process
        self.instances = instances
        self.ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        relay = threading.Thread(target=self._relay, daemon=True)
        relay.start()
        threading.Thread(target=self._watch, args=(loop, relay), daemon=True).start()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @classmethod
    async def start(
        cls, bundle: Bundle, contract: Contract, instances: int, threads: int | None, device: int = 0
    ) -> WorkerProcess:
        """Start a process, and wait until every instance has finished its warm-up.

        Args:
            bundle: the bundle whose engine it runs.
            contract: inputs, outputs and batch limits.
            instances: number of execution contexts.
            threads: CPU threads per instance.
            device: number of the GPU, the only one that the process will see.

        Raises:
            JobError: the bundle was changed, the engine cannot run on this machine, or the process died.
        """
        made: list[Instance] = []
        process = None
        try:
            for _ in range(instances):
                made.append(Instance(contract))  # noqa: PERF401 - if one fails, those made before it are closed below
            channels = [[one.worker_socket.fileno(), one.inputs.descriptor, one.outputs.descriptor] for one in made]
            process = subprocess.Popen(  # noqa: ASYNC220 - returns at once; a thread waits for the end of the process
                child_command("trtkp.serving.worker.worker"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,  # never the server's own, whose reader may stall
                stderr=subprocess.STDOUT,
                env=environment_with(device),
                pass_fds=[number for channel in channels for number in channel],
            )
            worker = cls(process, made)
        except (OSError, RuntimeError) as error:  # no descriptor, no memory, no process; RuntimeError: no thread
            for instance in made:
                instance.close()
            if process is not None:
                _end(process)
            raise JobError(f"cannot start a worker ({getattr(error, 'strerror', error)})", file=bundle.path) from None
        job = {
            "bundle": str(bundle.path.absolute()),
            "digest": bundle.digest,
            "threads": threads,
            "instances": channels,
            "warm_up": _warm_up(bundle, contract),
        }
        try:
            assert process.stdin is not None
            with process.stdin as pipe, contextlib.suppress(BrokenPipeError):
                pipe.write(json.dumps(job).encode() + b"\n")
            for word in await asyncio.gather(*(instance.connect() for instance in made)):
                if "error" in word:
                    raise JobError(word["error"], file=word["file"], remedy=word["remedy"])
        except ConnectionError:
            status = await worker.stop()
            raise JobError(f"the worker ended with status {status} before it was ready", file=bundle.path) from None
        except OSError as error:
            await worker.stop()
            raise JobError(f"cannot start a worker ({error.strerror})", file=bundle.path) from None
        except BaseException:
            await worker.stop()
            raise
        return worker

    async def stop(self) -> int:
        """Kill the process, wait for its end, and return its exit status."""
        for instance in self.instances:
            instance.close()
        self.kill()
        await self.ended.wait()
        return self._process.wait()

    def kill(self) -> None:
        """Kill the process without waiting; ``ended`` is set soon after."""
        self._process.kill()

    def _relay(self) -> None:
        """Log what the worker and its libraries write, so that they never wait for a reader."""
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            while line := lines.readline(_LINE):
                text = line.decode(errors="replace").rstrip()
                if text:
                    log("worker", level=logging.WARNING, pid=self._process.pid, text=text)

    def _watch(self, loop: asyncio.AbstractEventLoop, relay: threading.Thread) -> None:
        self._process.wait()
        relay.join(1.0)  # its pipe is closed then, unless a process that the worker has started still holds it
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(self.ended.set)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _warm_up(bundle: Bundle, contract: Contract) -> list[dict[str, list[int]]]:
    """Input shapes of the warm-up runs: the typical ones, then the largest.

    The largest show before the first request whether memory suffices.
    """
    profile = bundle.manifest.profile
    largest = {name: list(limits["max"]) for name, limits in profile.items()}
    usual = {name: list(limits["opt"]) for name, limits in profile.items()}
    if contract.batch is not None:
        for shapes in (largest, usual):
            for shape in shapes.values():
                shape[0] = min(shape[0], contract.batch[1])
    return [usual, largest]

"""The serving worker: one process per model and version, with one thread and one opened engine per instance.

The engine runs in a process of its own so that a crash does not end the server.

Protocol: each instance has a socket and two arenas of shared memory, which hold the tensors. Messages are JSON objects,
one per line. The worker first sends ``{"ready": true}`` after its warm-up, or ``{"error": text, ...}``. Then it answers
every ``{"inputs": layout}`` with ``{"outputs": layout, "ms": milliseconds}`` or ``{"error": text}``. The end of the
socket ends the instance, and the end of all instances ends the process.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from io import BufferedRWPair
from typing import Any

import numpy as np

from trtkp.bundle import Bundle, load
from trtkp.engine import Runner
from trtkp.errors import IntegrityError, TrtkpError
from trtkp.machine.processes import die_with_parent
from trtkp.serving.worker.arena import Arena, layout

__all__ = ["main"]

_AGAIN = "build the bundle again"


def main() -> None:
    """Serve until the sockets close. If the bundle cannot be opened, report that on every socket."""
    die_with_parent()
    # Ctrl-C in a terminal reaches the workers too, but they must live until the server has drained its requests.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    job = json.loads(sys.stdin.buffer.readline())
    bundle: Bundle | TrtkpError
    try:
        # Every hash is checked again: the files may have changed since the server started, to another bundle's even.
        bundle = load(job["bundle"], digest=job["digest"])
    except TrtkpError as error:
        bundle = error
    threads = [threading.Thread(target=_guarded, args=(bundle, job, channel)) for channel in job["instances"]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os._exit(0)  # skips the libraries' destructors, which can crash and turn a clean end into a failure


def _guarded(bundle: Bundle | TrtkpError, job: dict[str, Any], channel: list[int]) -> None:
    """Run an instance. An unexpected exception ends the whole process, so that the server notices and restarts it."""
    connection, inputs, outputs = channel
    try:
        with socket.socket(fileno=connection) as link, link.makefile("rwb") as lines:
            _instance(bundle, job, lines, Arena(inputs), Arena(outputs))
    except (BrokenPipeError, ConnectionResetError):
        pass  # the server is gone
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def _instance(
    bundle: Bundle | TrtkpError, job: dict[str, Any], lines: BufferedRWPair, inputs: Arena, outputs: Arena
) -> None:
    try:
        if isinstance(bundle, TrtkpError):
            raise bundle
        runner = bundle.open(threads=job["threads"])
        for shapes in job["warm_up"]:
            feeds = {spec.name: np.zeros(shapes[spec.name], spec.dtype) for spec in runner.inputs}
            _check_outputs(bundle, runner.run(feeds))
    except TrtkpError as error:
        _send(lines, error=error.message, file=error.file, remedy=error.remedy)
        return
    with runner:
        _send(lines, ready=True)
        for line in lines:
            _send(lines, **_answer(runner, json.loads(line), inputs, outputs))


def _check_outputs(bundle: Bundle, results: Mapping[str, np.ndarray]) -> None:
    """Check that the engine returns the outputs that the manifest promises to clients.

    Raises:
        IntegrityError: an output is missing, or has another type or rank.
    """
    for record in bundle.manifest.outputs:
        value = results.get(record.name)
        if value is None:
            raise IntegrityError(
                f"the engine has no output {record.name}, only {', '.join(results)}", file=bundle.path, remedy=_AGAIN
            )
        fixed = [size for size in record.shape if isinstance(size, int)]
        sizes = [size for size, dim in zip(value.shape, record.shape, strict=False) if isinstance(dim, int)]
        if value.dtype.name != record.dtype or value.ndim != len(record.shape) or sizes != fixed:
            raise IntegrityError(
                f"output {record.name} of the engine is {value.dtype.name}{list(value.shape)}, but the manifest says "
                f"{record.dtype}{record.shape}", file=bundle.path, remedy=_AGAIN,
            )  # fmt: skip


def _answer(runner: Runner, request: dict[str, Any], inputs: Arena, outputs: Arena) -> dict[str, Any]:
    try:
        start = time.perf_counter()
        results = runner.run(inputs.views(request["inputs"]))
        seconds = time.perf_counter() - start
    except TrtkpError as error:
        return {"error": str(error)}
    places, size = layout((name, value.dtype, value.shape) for name, value in results.items())
    outputs.reserve(size)
    views = outputs.views(places)
    for name, value in results.items():
        views[name][...] = value
    return {"outputs": places, "ms": seconds * 1e3}


def _send(lines: BufferedRWPair, **event: Any) -> None:
    lines.write(json.dumps(event).encode() + b"\n")
    lines.flush()


if __name__ == "__main__":
    main()

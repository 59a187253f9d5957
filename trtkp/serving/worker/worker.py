"""The serving worker: one process per model and version, with a thread and an engine context per instance.

An engine that crashes takes this process with it and not the server. Each instance has a socket and two arenas. On the
socket one JSON object a line: first ``{"ready": true}`` after the warm-up, then for every ``{"inputs": layout}`` either
``{"outputs": layout, "ms": compute}`` or ``{"error": text}``. Tensors lie in the arenas. The end of the socket ends the
worker.
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
from io import BufferedRWPair
from typing import Any

import numpy as np

from trtkp.bundle import Bundle, load
from trtkp.engine import Runner
from trtkp.errors import TrtkpError
from trtkp.machine.processes import die_with_parent
from trtkp.serving.worker.arena import Arena, layout

__all__ = ["main"]


def main() -> None:
    """Serve until the sockets close; a failed start is told on every one of them."""
    die_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM):  # the server decides when its workers go
        signal.signal(number, signal.SIG_IGN)
    job = json.loads(sys.stdin.buffer.readline())
    bundle: Bundle | TrtkpError
    try:
        bundle = load(job["bundle"])  # every hash, at every start
    except TrtkpError as error:
        bundle = error
    threads = [threading.Thread(target=_guarded, args=(bundle, job, channel)) for channel in job["instances"]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os._exit(0)  # without the libraries' destructors


def _guarded(bundle: Bundle | TrtkpError, job: dict[str, Any], channel: list[int]) -> None:
    """An instance; what it does not expect ends the process, for the server to see."""
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
            runner.run({spec.name: np.zeros(shapes[spec.name], spec.dtype) for spec in runner.inputs})
    except TrtkpError as error:
        _say(lines, error=error.message, file=error.file, remedy=error.remedy)
        return
    with runner:
        _say(lines, ready=True)
        for line in lines:
            _say(lines, **_answer(runner, json.loads(line), inputs, outputs))


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


def _say(lines: BufferedRWPair, **event: Any) -> None:
    lines.write(json.dumps(event).encode() + b"\n")
    lines.flush()


if __name__ == "__main__":
    main()

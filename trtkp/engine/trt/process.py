"""The caller's side of the build worker: start it, relay its log and progress, and report how it ended.

A crash of the library becomes a `JobError`, and no unfinished file remains.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import tempfile
import time
import uuid
from collections import deque
from dataclasses import replace
from typing import IO, Any

from trtkp.engine.base import BuildRequest, BuildResult, Progress
from trtkp.engine.trt.worker import encode_request
from trtkp.errors import InputError, JobError
from trtkp.machine.gpu import environment_with
from trtkp.machine.processes import child_command

__all__ = ["build_in_worker"]

#: Number of the library's last log lines quoted in the error when the worker dies; one error is one line of output.
_LAST_LINES = 5


def build_in_worker(module: str, request: BuildRequest, artefact: str, progress: Progress | None = None) -> BuildResult:
    """Build ``request.output / artefact`` in a process of its own.

    The engine is written to a temporary file in the same directory and then renamed, so a failed or interrupted build
    leaves an older engine untouched. The worker is killed whenever this call ends, and dies with this process.

    Args:
        module: module that builds: ``tensorrt`` or ``tensorrt_rtx``.
        request: what to build; the worker sees ``request.device`` as its only GPU.
        artefact: file name of the engine.
        progress: called with phase, step and total.

    Raises:
        InputError: the ONNX file does not exist, or the request is invalid.
        JobError: the parser or the builder failed, or the worker died; the message quotes the library's last lines.
    """
    if not request.onnx.is_file():
        raise InputError("no such file", file=request.onnx)
    start = time.perf_counter()
    request.output.mkdir(parents=True, exist_ok=True)
    target = request.output / artefact
    # A random name: two builds into one directory must not write to the same file.
    unfinished = request.output / f".{artefact}.{uuid.uuid4().hex[:8]}.tmp"
    warnings: list[str] = []
    log: list[str] = []
    try:
        job = {"module": module, "request": encode_request(replace(request, device=0)), "engine": str(unfinished)}
        done = _follow(job, request, warnings, log, progress)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    return BuildResult(
        files=(target,),
        version=done["version"],
        targets=tuple(done["targets"]),
        seconds=time.perf_counter() - start,
        engine_bytes=target.stat().st_size,
        warnings=tuple(warnings),
        log=tuple(log),
        peak_bytes=done["peak_bytes"],
        plugin_layers=done["plugin_layers"],
        carried_libraries=tuple(done["carried_libraries"]),
    )


def _follow(
    job: dict[str, Any], request: BuildRequest, warnings: list[str], log: list[str], progress: Progress | None
) -> dict[str, Any]:
    """Run the worker until its ``done`` event, and return that event."""
    # Standard error goes to a file: nobody has to read it while the worker runs, and a pipe would fill up and block it.
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(
            child_command("trtkp.engine.trt.worker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment_with(request.device),
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # the worker is dead already; its exit status below says more
                process.stdin.write(json.dumps(job).encode() + b"\n")
                process.stdin.flush()
            for line in process.stdout:
                event = _parse(line)
                kind = event.pop("event", None)
                if kind == "progress" and progress is not None:
                    progress(event["phase"], event["step"], event["total"])
                elif kind == "log":
                    (warnings if event["severity"] == "warning" else log).append(" ".join(event["text"].split()))
                elif kind == "error":
                    error = InputError if event.pop("kind") == "input" else JobError
                    raise error(event["message"], **{k: event[k] for k in ("file", "layer", "remedy")})
                elif kind == "done":
                    return event
            status = process.wait()
            raise JobError(
                f"the build process {_how(status)}; its last lines: {_tail([*warnings, *log], stderr)}",
                file=request.onnx,
                remedy="if it ran out of memory, give it more, or build for smaller shapes",
            )
        finally:
            process.kill()  # after `done` too: the engine is written, and the library's clean-up could hang
            process.wait()
            with contextlib.suppress(OSError):
                process.stdin.close()
            process.stdout.close()


def _parse(line: bytes) -> dict[str, Any]:
    """Parse one line of the worker; a line cut short by its death gives an empty event."""
    with contextlib.suppress(ValueError):
        event = json.loads(line)
        if isinstance(event, dict):
            return event
    return {}


def _how(status: int) -> str:
    if status >= 0:
        return f"ended with status {status} without an answer"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-status).name}"
    return f"was killed by signal {-status}"


def _tail(lines: list[str], stderr: IO[bytes]) -> str:
    stderr.seek(0)
    printed = deque((line.decode(errors="replace").strip() for line in stderr), maxlen=_LAST_LINES)
    last = [*lines[-_LAST_LINES:], *(line for line in printed if line)][-_LAST_LINES:]
    return " | ".join(last) or "none"

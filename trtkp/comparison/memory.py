"""Measure the peak memory of one engine: a new process opens it, runs it a few times, and reports its own peak.

In the process that compares engines, all of them would share one peak, and the comparison itself would add to it.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trtkp.comparison.result import Memory
from trtkp.comparison.subject import Subject
from trtkp.machine.processes import child_command, peak_bytes
from trtkp.shapes import Shape

__all__ = ["main", "measure_memory"]

#: Runs before the peak is read. The first one allocates; two more catch what the library allocates later.
_RUNS = 3
#: Time limit in seconds, after which the process counts as stuck.
_SECONDS = 300


def measure_memory(subject: Subject, shapes: Mapping[str, Shape], threads: int | None) -> Memory | str:
    """Peak of a process that runs the subject on random inputs of these shapes, or why there is none."""
    if not subject.backend.runs_on_cpu:
        return f"memory is not measured for {subject.backend.name}: it is the GPU's"
    job = {
        "backend": subject.backend.name,
        "file": str(subject.file.absolute()),
        "shapes": {name: list(shape) for name, shape in shapes.items()},
        "threads": threads,
    }
    try:
        done = subprocess.run(
            child_command("trtkp.comparison.memory"),
            input=json.dumps(job),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"memory was not measured: {error}"
    with contextlib.suppress(ValueError, TypeError, IndexError):
        return Memory(**json.loads(done.stdout.splitlines()[-1]))
    last = (done.stderr.strip().splitlines() or ["it ended without an answer"])[-1]
    return f"memory was not measured: {last}"


def main() -> None:
    """Entry point of the new process: reads a job as JSON from stdin, writes a `Memory` as JSON to stdout."""
    import onnxruntime  # noqa: F401 - imported before the first reading, to tell its memory from the engine's

    from trtkp.engine import get_backend
    from trtkp.engine.feeds import random_feeds

    job: dict[str, Any] = json.load(sys.stdin)
    libraries = peak_bytes()
    with get_backend(job["backend"]).open(Path(job["file"]), threads=job["threads"]) as runner:
        shapes = {name: tuple(shape) for name, shape in job["shapes"].items()}
        feeds = random_feeds(runner.inputs, shapes, 0)
        for _ in range(_RUNS):
            runner.run(feeds)
    answer = {"peak_bytes": peak_bytes(), "libraries_bytes": libraries}
    if None in answer.values():
        sys.exit("this system does not report a process's peak memory")
    sys.stdout.write(json.dumps(answer) + "\n")

"""Memory of an engine alone: a fresh process opens it, runs it a few times, and says what its peak was.

Run in the comparing process, engines would share one peak, with all that comparing needs on top.
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

_RUNS = 3
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
    """The child: a job as JSON on standard input, a `Memory` as one line of JSON on standard output."""
    import onnxruntime  # noqa: F401 - imported for what it weighs

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
        sys.exit("this system does not tell a process's peak memory")
    sys.stdout.write(json.dumps(answer) + "\n")

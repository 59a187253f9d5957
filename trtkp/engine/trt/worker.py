"""The build worker, ``python -m trtkp.engine.trt.worker``: a process that builds one engine and ends.

TensorRT's builder runs in a process of its own for three reasons: it can abort the process, it does not return all of
its memory, and TensorRT-RTX must not share a process with trtkp's plugin library.

Protocol: the worker reads one line of JSON from stdin (``module``, ``request``, ``engine``). Stdin then stays open; its
end means that the caller is gone. The worker writes one JSON object per line to stdout, with the key ``event``: ``log``
(severity, text), ``progress`` (phase, step, total), and finally ``done`` (version, targets, peak_bytes) or ``error``
(kind, message, file, layer, remedy). Whatever the library prints goes to stderr.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, TextIO

from trtkp.engine.base import BuildRequest
from trtkp.engine.options import TrtOptions
from trtkp.errors import InputError, TrtkpError
from trtkp.machine.processes import die_with_parent, peak_bytes
from trtkp.shapes import ShapeRange

__all__ = ["decode_request", "encode_request", "main"]


def encode_request(request: BuildRequest) -> dict[str, Any]:
    """Turn a request into JSON-compatible values."""
    return {
        **{name: value for name, value in vars(request).items() if isinstance(value, bool | int | str | None)},
        "onnx": str(request.onnx),
        "output": str(request.output),
        "profile": {name: [list(shape) for shape in range_.shapes()] for name, range_ in request.profile.items()},
        "targets": list(request.targets),
        "plugins": _text(request.plugins),
        "trt": {**vars(request.trt), "timing_cache": _text(request.trt.timing_cache)},
    }


def decode_request(data: dict[str, Any]) -> BuildRequest:
    """Turn the result of `encode_request` back into a request."""
    profile = {name: ShapeRange(*(tuple(shape) for shape in shapes)) for name, shapes in data["profile"].items()}
    return BuildRequest(
        **{
            **data,
            "onnx": Path(data["onnx"]),
            "output": Path(data["output"]),
            "profile": profile,
            "targets": tuple(data["targets"]),
            "plugins": _path(data["plugins"]),
            "trt": TrtOptions(
                **{
                    **data["trt"],
                    "timing_cache": _path(data["trt"]["timing_cache"]),
                    "tune_batches": tuple(data["trt"]["tune_batches"]),
                }
            ),
        }
    )


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def main() -> None:
    """Build one engine and end the process; the exit status is 0 after ``done`` and after ``error``."""
    die_with_parent()
    events = _take_stdout()

    def emit(event: str, **fields: Any) -> None:
        events.write(json.dumps({"event": event, **fields}) + "\n")
        events.flush()

    job = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_watch_stdin, daemon=True).start()
    try:
        emit("progress", phase="Loading the library", step=0, total=1)
        trt = importlib.import_module(job["module"])
        from trtkp.engine.trt.builder import build_engine

        result = build_engine(
            trt,
            decode_request(job["request"]),
            Path(job["engine"]),
            lambda severity, text: emit("log", severity=severity, text=text),
            lambda phase, step, total: emit("progress", phase=phase, step=step, total=total),
        )
        emit("done", peak_bytes=peak_bytes(), **result)
    except TrtkpError as error:
        kind = "input" if isinstance(error, InputError) else "job"
        emit("error", kind=kind, message=error.message, file=error.file, layer=error.layer, remedy=error.remedy)
    except Exception as error:
        traceback.print_exc()
        emit("error", kind="job", message=f"{type(error).__name__}: {error}", file=None, layer=None, remedy=None)
    # Skip the library's destructors: the answer has been given, and a crash in them would turn it into a failure.
    os._exit(0)


def _take_stdout() -> TextIO:
    """Reserve stdout for events, and send what the library itself prints to stderr."""
    private = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(private, "w", encoding="utf-8")


def _watch_stdin() -> None:
    """End the process when stdin ends, which means that the caller is gone.

    `die_with_parent` does the same on Linux only, and misses a caller that died before it was called.
    """
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()

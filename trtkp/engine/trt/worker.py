"""The build worker: one engine, one process, ``python -m trtkp.engine.trt.worker``.

TensorRT's builder can abort its process, keeps memory, and (TensorRT-RTX) must not share a process with our plugin
library. So it gets a process of its own.

Protocol: one line of JSON on stdin (``module``, ``request``, ``engine``), then stdin stays open: its end means that the
caller is gone. On stdout one JSON object a line, by ``event``: ``log`` (severity, text), ``progress`` (phase, step,
total) and last ``done`` (version, targets, peak_bytes) or ``error`` (kind, message, file, layer, remedy). Whatever the
library itself prints goes to stderr.
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
    """The request in JSON's types."""
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
    """The inverse of ``encode_request``."""
    profile = {name: ShapeRange(*(tuple(shape) for shape in shapes)) for name, shapes in data["profile"].items()}
    return BuildRequest(
        **{
            **data,
            "onnx": Path(data["onnx"]),
            "output": Path(data["output"]),
            "profile": profile,
            "targets": tuple(data["targets"]),
            "plugins": _path(data["plugins"]),
            "trt": TrtOptions(**{**data["trt"], "timing_cache": _path(data["trt"]["timing_cache"])}),
        }
    )


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def main() -> None:
    """Serve one request and end the process: 0 after ``done`` or ``error``."""
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
    # Without the library's destructors: the answer is given, and a crash in them would only spoil it.
    os._exit(0)


def _take_stdout() -> TextIO:
    """The real stdout for events alone; the library's own prints are sent to stderr."""
    private = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(private, "w", encoding="utf-8")


def _watch_stdin() -> None:
    """Elsewhere, and when the parent died before the line above: the end of stdin."""
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()

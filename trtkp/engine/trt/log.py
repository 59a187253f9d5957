"""TensorRT's log and progress, as callbacks of ours: its own words belong into our errors.

TensorRT takes the first logger of a process for all of its objects, so there is one for each library, and who wants to
know what went wrong marks the log before a call and asks for the errors since.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from trtkp.engine.base import Progress

__all__ = ["Log", "make_logger", "make_monitor", "process_logger"]

#: Called with a severity ("error", "warning") and a line.
Log = Callable[[str, str], None]

#: Seconds between two reports of one phase: a large network makes thousands of steps.
_PROGRESS_INTERVAL_S = 0.05
#: Errors that are kept.
_KEPT = 64
#: Errors that one message carries: of a cascade the first line is the cause and the rest its echo.
_TOLD = 2

_loggers: dict[str, Any] = {}
_lock = threading.Lock()


def make_logger(trt: Any, log: Log | None = None) -> Any:
    """A new ``ILogger`` that remembers errors; ``mark()`` and ``since(mark)`` read them.

    Args:
        trt: the imported module.
        log: takes errors and warnings as they come.
    """

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: deque[tuple[int, str]] = deque(maxlen=_KEPT)
            self._count = 0

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self._count += 1
                self._errors.append((self._count, " ".join(message.split())))
            if log is not None and severity <= trt.ILogger.WARNING:
                log("error" if severity <= trt.ILogger.ERROR else "warning", message)

        def mark(self) -> int:
            """Now, for `since`."""
            return self._count

        def since(self, mark: int) -> str:
            """The first errors since, in TensorRT's words; empty where there was none."""
            lines = [text for number, text in list(self._errors) if number > mark]
            return "; ".join(dict.fromkeys(lines[:_TOLD]))

    return Logger()


def process_logger(trt: Any) -> Any:
    """The logger of this process and library; made once."""
    with _lock:
        if trt.__name__ not in _loggers:
            _loggers[trt.__name__] = make_logger(trt)
        return _loggers[trt.__name__]


def make_monitor(trt: Any, progress: Progress) -> Any | None:
    """An ``IProgressMonitor``; None where the library has none."""
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.totals: dict[str, int] = {}
            self.last = 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.totals[phase_name] = num_steps
            progress(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            now = time.monotonic()
            if now - self.last >= _PROGRESS_INTERVAL_S:
                self.last = now
                progress(phase_name, step + 1, self.totals.get(phase_name, 0))
            return True

        def phase_finish(self, phase_name: str) -> None:
            total = self.totals.pop(phase_name, 0)
            progress(phase_name, total, total)

    return Monitor()

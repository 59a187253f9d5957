"""TensorRT's log and progress as callbacks, so that error messages can hold TensorRT's own words.

TensorRT uses the first logger of a process for all of its objects. There is therefore one logger per library and
process. To find out why a call failed, take a mark of the log before it and ask for the errors since that mark.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from trtkp.engine.base import Progress

__all__ = ["Log", "make_logger", "make_monitor", "process_logger"]

#: Called with a severity (``"error"`` or ``"warning"``) and a line of the log.
Log = Callable[[str, str], None]

#: Least seconds between two progress reports: a large network has thousands of steps, and 20 reports a second look
#: smooth in a terminal.
_PROGRESS_INTERVAL_S = 0.05
#: Number of errors the log keeps. A failed call logs a handful; 64 keeps those of several threads.
_KEPT = 64
#: Number of errors quoted in a message. TensorRT logs an error again at every level of its call stack: the first line
#: is the cause, and the later ones repeat it.
_QUOTED = 2

_loggers: dict[str, Any] = {}
_lock = threading.Lock()


def make_logger(trt: Any, log: Log | None = None) -> Any:
    """Make an ``ILogger`` that remembers errors; ``mark()`` and ``since(mark)`` read them.

    The class is made here and not at module level, because its base class belongs to the imported library.

    Args:
        trt: the imported module.
        log: called with each error and warning.
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
            """The current position in the log, for `since`."""
            return self._count

        def since(self, mark: int) -> str:
            """The first errors since a mark, in TensorRT's words; empty if there was none."""
            lines = [text for number, text in list(self._errors) if number > mark]
            return "; ".join(dict.fromkeys(lines[:_QUOTED]))

    return Logger()


def process_logger(trt: Any) -> Any:
    """Return this process's logger for a library; it is made at the first call."""
    with _lock:
        if trt.__name__ not in _loggers:
            _loggers[trt.__name__] = make_logger(trt)
        return _loggers[trt.__name__]


def make_monitor(trt: Any, progress: Progress) -> Any | None:
    """Make an ``IProgressMonitor`` that calls ``progress``; None where the library has no such class."""
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

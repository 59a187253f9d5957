"""Structured logs: one JSON object per line, on standard error, written without ever holding up the server.

Lines go to a bounded queue, and a thread of its own writes them. Where the reader of standard error stalls, the queue
fills up; further lines are counted and dropped, and the next line that fits says how many are missing.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import queue
import select
import sys
import threading
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

__all__ = ["LOGGER", "log", "start_logging", "stop_logging"]

LOGGER = logging.getLogger("trtkp.serving")

#: Lines that wait for a slow reader. Together with `_LONGEST`, it bounds their memory to 32 MiB; a line of a request
#: has about 250 bytes, so usually it is 1 MiB.
_WAITING = 4096
#: Longest line in bytes. Only a line of a library or of a worker can be longer; its end is cut off.
_LONGEST = 8192
#: Seconds that the end of the server waits for a reader.
_PATIENCE_S = 1.0


def log(event: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """Log an event with its fields; fields that are None are left out."""
    if LOGGER.isEnabledFor(level):
        LOGGER.log(level, event, extra={"fields": fields})


def start_logging(level: str) -> None:
    """Write events of this level and above, and warnings of all libraries, to standard error."""
    stop_logging()
    logging.disable(logging.NOTSET)  # the command line disables warnings of all libraries; these must come through
    handler = _QueuedHandler(_writer())
    handler.setFormatter(_JsonFormatter())
    LOGGER.handlers[:] = [handler]
    LOGGER.setLevel(level.upper())
    LOGGER.propagate = False
    # Without a handler, logging writes warnings of Uvicorn and asyncio to standard error itself, and waits for it.
    if not logging.root.handlers:
        logging.root.addHandler(handler)
    logging.captureWarnings(capture=True)


def stop_logging() -> None:
    """Write the lines that still wait, for a second at most, and end the thread. Called at exit, too."""
    for handler in [one for one in LOGGER.handlers if isinstance(one, _QueuedHandler)]:
        LOGGER.removeHandler(handler)
        logging.root.removeHandler(handler)
        handler.close()


atexit.register(stop_logging)


def _writer() -> Callable[[bytes], None]:
    """Return a function that writes to standard error, and takes as long as the reader does."""
    try:
        # Past Python's own buffer: its lock would be held by the waiting thread, and the interpreter cannot end then.
        descriptor = os.dup(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):  # closed, or replaced by an object without a descriptor
        return _write_to_object

    def write(data: bytes) -> None:
        while data:
            try:
                data = data[os.write(descriptor, data) :]
            except BlockingIOError:  # somebody who shares it has made the pipe non-blocking
                select.select([], [descriptor], [], 1.0)

    return write


def _write_to_object(data: bytes) -> None:
    if sys.stderr is not None:
        sys.stderr.write(data.decode(errors="replace"))


class _QueuedHandler(logging.Handler):
    """Puts lines into a queue, from which a thread writes them."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        super().__init__()
        self._write = write
        self._lines: queue.Queue[bytes | None] = queue.Queue(_WAITING)
        self._lost = 0
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._put(self._line(record))
        except queue.Full:
            self._lost += 1

    def close(self) -> None:
        """Wait for the thread, but not longer than `_PATIENCE_S`."""
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=_PATIENCE_S)
            self._thread.join(_PATIENCE_S)
        super().close()

    def _put(self, line: bytes) -> None:
        if self._lost:
            lost = logging.makeLogRecord(
                {"name": LOGGER.name, "levelno": logging.WARNING, "levelname": "WARNING", "msg": "log lines lost",
                 "fields": {"count": self._lost}}
            )  # fmt: skip
            self._lines.put_nowait(self._line(lost))
            self._lost = 0
        self._lines.put_nowait(line)

    def _line(self, record: logging.LogRecord) -> bytes:
        return self.format(record).encode(errors="replace") + b"\n"

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            with contextlib.suppress(OSError, ValueError):  # the reader is gone; the server goes on
                self._write(line)


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = {name: value for name, value in getattr(record, "fields", {}).items() if value is not None}
        if record.name not in (LOGGER.name, "root"):
            fields["logger"] = record.name
        if record.exc_info and record.exc_info[1] is not None:
            fields["error"] = "".join(traceback.format_exception(record.exc_info[1]))[-_LONGEST // 2 :]
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        document = {"time": moment, "level": record.levelname.lower(), "event": record.getMessage(), **fields}
        line = json.dumps(document)
        if len(line) > _LONGEST:
            document = {name: _short(value) for name, value in document.items()}
            line = json.dumps(document)
        return line


def _short(value: Any) -> Any:
    return value if isinstance(value, int | float) else str(value)[:1000]

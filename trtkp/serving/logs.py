"""Structured logs: one JSON object per line, on standard error."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

__all__ = ["LOGGER", "log", "start_logging"]

LOGGER = logging.getLogger("trtkp.serving")


def log(event: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """Log an event with its fields; fields that are None are left out."""
    if LOGGER.isEnabledFor(level):
        LOGGER.log(level, event, extra={"fields": fields})


def start_logging(level: str) -> None:
    """Write events of this level and above to standard error."""
    logging.disable(logging.NOTSET)  # the command line disables warnings of all libraries; these must come through
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter())
    LOGGER.handlers[:] = [handler]
    LOGGER.setLevel(level.upper())
    LOGGER.propagate = False


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = {name: value for name, value in getattr(record, "fields", {}).items() if value is not None}
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        return json.dumps({"time": moment, "level": record.levelname.lower(), "event": record.getMessage(), **fields})

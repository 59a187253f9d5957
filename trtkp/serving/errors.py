"""The errors with which a request can be answered, each with its HTTP status and its gRPC code."""

from __future__ import annotations

from typing import ClassVar

from trtkp.errors import TrtkpError

__all__ = [
    "BadRequest",
    "NoMemory",
    "NotFound",
    "QueueFull",
    "ServeError",
    "TimedOut",
    "TooLarge",
    "Unauthorised",
    "Unavailable",
]


class ServeError(TrtkpError):
    """The engine failed on a valid request. Also the base class of the other errors."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "INTERNAL"


class BadRequest(ServeError):  # noqa: N818 - the names of the protocol's statuses
    """The request is invalid; nothing was queued."""

    status, code = 400, "INVALID_ARGUMENT"


class Unauthorised(ServeError):  # noqa: N818
    """The bearer token is missing or wrong."""

    status, code = 401, "UNAUTHENTICATED"


class NotFound(ServeError):  # noqa: N818
    """The model or version does not exist."""

    status, code = 404, "NOT_FOUND"


class TooLarge(ServeError):  # noqa: N818
    """The body is larger than the limit."""

    status, code = 413, "INVALID_ARGUMENT"


class QueueFull(ServeError):  # noqa: N818
    """The queue is full; the request is refused immediately rather than kept waiting."""

    status, code = 429, "RESOURCE_EXHAUSTED"


class Unavailable(ServeError):  # noqa: N818
    """The model is starting, is restarting after its worker died, or the server is shutting down."""

    status, code = 503, "UNAVAILABLE"


class NoMemory(ServeError):  # noqa: N818
    """Requests that wait hold all memory that the server, or this connection, may have."""

    status, code = 503, "RESOURCE_EXHAUSTED"


class TimedOut(ServeError):  # noqa: N818
    """There was no answer within the time limit."""

    status, code = 504, "DEADLINE_EXCEEDED"

"""What a request can be refused for, each with its HTTP status and its gRPC code."""

from __future__ import annotations

from typing import ClassVar

from trtkp.errors import TrtkpError

__all__ = [
    "BadRequest",
    "NotFound",
    "QueueFull",
    "ServeError",
    "TimedOut",
    "TooLarge",
    "Unauthorised",
    "Unavailable",
]


class ServeError(TrtkpError):
    """Base: the engine failed on a request that was in order."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "INTERNAL"


class BadRequest(ServeError):  # noqa: N818 - the names of the protocol's statuses
    """A request that cannot be right; nothing was queued."""

    status, code = 400, "INVALID_ARGUMENT"


class Unauthorised(ServeError):  # noqa: N818
    """No bearer token, or another one."""

    status, code = 401, "UNAUTHENTICATED"


class NotFound(ServeError):  # noqa: N818
    """No such model or version."""

    status, code = 404, "NOT_FOUND"


class TooLarge(ServeError):  # noqa: N818
    """A body above the limit."""

    status, code = 413, "INVALID_ARGUMENT"


class QueueFull(ServeError):  # noqa: N818
    """More requests than the queue holds: refused at once."""

    status, code = 429, "RESOURCE_EXHAUSTED"


class Unavailable(ServeError):  # noqa: N818
    """Starting, restarting after a worker's death, or shutting down."""

    status, code = 503, "UNAVAILABLE"


class TimedOut(ServeError):  # noqa: N818
    """No answer within the time limit."""

    status, code = 504, "DEADLINE_EXCEEDED"

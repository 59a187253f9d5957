"""Headers of gRPC calls: what a client asks for, and how a call ends."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from time import monotonic
from urllib.parse import quote

from trtkp.serving.errors import BadRequest, ServeError, Unauthorised

__all__ = ["ACCEPTED", "RESPONSE", "CallHead", "Headers", "NotGrpc", "Status", "Unimplemented", "trailers"]

Headers = list[tuple[bytes, bytes]]

#: The encodings of messages that this server takes.
ACCEPTED = ("identity", "deflate", "gzip")
RESPONSE: Headers = [
    (b":status", b"200"),
    (b"content-type", b"application/grpc"),
    (b"grpc-accept-encoding", ",".join(ACCEPTED).encode()),
]

#: Seconds of each unit of ``grpc-timeout``.
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


class Status(IntEnum):
    """How a call ended; the numbers are gRPC's."""

    OK = 0
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


class Unimplemented(ServeError):  # noqa: N818 - the name of the status
    """The method or the encoding does not exist here."""

    status, code = 501, "UNIMPLEMENTED"


class NotGrpc(Exception):  # noqa: N818 - says what the request is
    """The request is HTTP, but not gRPC; ``status`` is the HTTP status of its answer."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclass(slots=True)
class CallHead:
    """What the headers of a call say.

    Attributes:
        path: service and method, such as ``/grpc.health.v1.Health/Check``.
        encoding: compression of the messages whose flag says that they are compressed.
        end: moment of the monotonic clock at which the client gives up; None for never.
        authorization: the header of that name.

    Example:
        >>> head = CallHead.of([(b":method", b"POST"), (b":path", b"/a/B"), (b"te", b"trailers"),
        ...     (b"content-type", b"application/grpc"), (b"grpc-encoding", b"gzip")])
        >>> head.path, head.encoding, head.end
        ('/a/B', 'gzip', None)
    """

    path: str
    encoding: str = "identity"
    end: float | None = None
    authorization: bytes = b""

    @classmethod
    def of(cls, headers: Iterable[tuple[bytes, bytes]]) -> CallHead:
        """Read the headers of a request.

        Raises:
            NotGrpc: another HTTP method or type of content.
            BadRequest: a header of gRPC has no meaning.
            Unimplemented: the encoding is not one of `ACCEPTED`.
        """
        given = dict(headers)
        if given.get(b":method") != b"POST":
            raise NotGrpc(405)
        kind = given.get(b"content-type", b"")
        if kind != b"application/grpc" and not kind.startswith((b"application/grpc+", b"application/grpc;")):
            raise NotGrpc(415)
        if given.get(b"te") != b"trailers":
            raise BadRequest("the header te must be trailers")
        head = cls(given[b":path"].decode("latin-1"), authorization=given.get(b"authorization", b""))
        if (encoding := given.get(b"grpc-encoding")) is not None:
            head.encoding = encoding.decode("latin-1")
            if head.encoding not in ACCEPTED:
                raise Unimplemented(f"grpc-encoding {head.encoding[:40]!r}; use {', '.join(ACCEPTED)}")
        if (timeout := given.get(b"grpc-timeout")) is not None:
            head.end = monotonic() + _seconds(timeout.decode("latin-1"))
        return head

    def authorise(self, token: str | None) -> None:
        """Check the bearer token.

        Raises:
            Unauthorised: it is missing or wrong.
        """
        if token is not None and not hmac.compare_digest(self.authorization, f"Bearer {token}".encode()):
            raise Unauthorised("no valid bearer token")


def trailers(status: Status, message: str = "") -> Headers:
    """The headers that end a call.

    Example:
        >>> trailers(Status.NOT_FOUND, "no model 'é' (100 %)")
        [(b'grpc-status', b'5'), (b'grpc-message', b"no model '%C3%A9' (100 %25)")]
    """
    end: Headers = [(b"grpc-status", b"%d" % status)]
    if message:
        end.append((b"grpc-message", quote(message, safe=" !\"#$&'()*+,/:;<=>?@[\\]^`{|}").encode()))
    return end


def _seconds(text: str) -> float:
    digits, unit = text[:-1], text[-1:]
    if unit not in _UNITS or not (digits.isascii() and digits.isdecimal() and len(digits) <= 8):
        raise BadRequest(f"grpc-timeout {text[:20]!r} is no time")
    return int(digits) * _UNITS[unit]

"""What may come in on an HTTP/2 connection before its frames are interpreted: how many at once, and which in floods."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

__all__ = ["MAX_FRAME_BYTES", "MAX_HEADER_BYTES", "Flood", "FrameGate"]

#: Largest payload of a frame: the smallest limit that HTTP/2 knows, so that little waits for the end of a frame.
MAX_FRAME_BYTES = 1 << 14
#: Largest list of headers, decoded. gRPC's own libraries allow 8 to 16 KiB.
MAX_HEADER_BYTES = 1 << 14

#: Frames without content that a client may send at once, and a second. A client that cancels all its calls, or that
#: keeps its connection alive with pings, sends far fewer. A frame costs 20 to 100 µs here.
_BURST, _PER_SECOND = 1000.0, 100.0
#: Such frames that each answered call pays for: resets, window updates and pings that a busy client needs.
_PER_CALL = 8.0

_PREFACE_BYTES = 24  # PRI * HTTP/2.0 ...; h2 checks it
_HEAD = 9
_DATA, _HEADERS, _GOAWAY, _CONTINUATION = 0, 1, 7, 9
_END_STREAM, _END_HEADERS, _PADDED = 0x1, 0x4, 0x8


class Flood(Exception):  # noqa: N818 - the name of what the client does
    """The client sends more frames without content, larger headers or larger frames than any client needs."""


class FrameGate:
    """Cuts the bytes of one connection at the ends of frames, a few frames at a time, and ends floods.

    Frames that carry no request (RST_STREAM, PING, SETTINGS, PRIORITY, WINDOW_UPDATE, empty or padded DATA, parts of
    headers) cost the sender nothing. Each takes from a budget, which time and answered calls fill up again.

    A client's GOAWAY is taken out: the library would end the connection, while the calls in progress must be answered.

    Args:
        now: the clock, in seconds.

    Example:
        >>> gate = FrameGate()
        >>> gate.add(b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        >>> len(gate.take(frames=8)), gate.waiting
        (33, 0)
    """

    def __init__(self, now: Callable[[], float] = monotonic) -> None:
        self.goaway = False
        self._now = now
        self._data = b""
        self._position = 0
        self._left = _PREFACE_BYTES  # bytes of the current frame that are still to come
        self._skip = 0
        self._budget = _BURST
        self._filled = now()
        self._headers = 0

    @property
    def waiting(self) -> int:
        """Bytes that could be taken now; the first bytes of a frame's head do not count."""
        left = len(self._data) - self._position
        return 0 if left < _HEAD and not self._left and not self._skip else left

    def add(self, data: bytes) -> None:
        """Take bytes in, in the order of their arrival."""
        self._data = self._data[self._position :] + data if self._position < len(self._data) else data
        self._position = 0

    def call_answered(self) -> None:
        """Add the share of one call to the budget."""
        self._budget = min(_BURST, self._budget + _PER_CALL)

    def take(self, frames: int) -> bytes:
        """Return the bytes of the next frames, at most so many; a frame may come in several parts.

        Raises:
            Flood: a limit was exceeded; the connection should end.
        """
        data, start = self._data, self._position
        if self._skip:
            step = min(self._skip, len(data) - start)
            self._skip -= step
            start += step
        end = start
        for _ in range(frames):
            if self._left:
                step = min(self._left, len(data) - end)
                end += step
                self._left -= step
                if self._left:
                    break
            if len(data) - end < _HEAD:
                break
            length = int.from_bytes(data[end : end + 3], "big")
            if length > MAX_FRAME_BYTES:  # h2 would wait for all of it before it checks
                raise Flood(f"a frame of more than {MAX_FRAME_BYTES} bytes")
            kind, flags = data[end + 3], data[end + 4]
            if kind == _GOAWAY:
                self.goaway = True
                self._skip = _HEAD + length
                break
            if kind != _HEADERS and (kind != _DATA or length == 0 or flags & _PADDED):
                self._charge(kind, flags)
            if kind in (_HEADERS, _CONTINUATION):
                self._count_headers(kind, flags, length)
            self._left = length
            end += _HEAD
        else:
            step = min(self._left, len(data) - end)
            end += step
            self._left -= step
        self._position = end
        if end == len(data):
            self._data, self._position = b"", 0
        return data if start == 0 and end == len(data) else data[start:end]

    def _charge(self, kind: int, flags: int) -> None:
        if kind == _DATA and flags & _END_STREAM:
            return  # the end of a request
        now = self._now()
        self._budget = min(_BURST, self._budget + (now - self._filled) * _PER_SECOND) - 1
        self._filled = now
        if self._budget < 0:
            raise Flood("too many frames without content")

    def _count_headers(self, kind: int, flags: int, length: int) -> None:
        self._headers = length + (self._headers if kind == _CONTINUATION else 0)
        if self._headers > MAX_HEADER_BYTES:
            raise Flood(f"headers of more than {MAX_HEADER_BYTES} bytes")
        if flags & _END_HEADERS:
            self._headers = 0

"""The frames of an HTTP/2 connection before they are interpreted: the content of calls is cut out, floods are ended.

The library h2 copies the content of every frame several times, and only when the frame is complete: a message of 16 MiB
costs it 30 ms and is not counted before. So content goes straight to its call as it arrives. h2 gets everything else,
and an empty frame in place of the one that ends a stream.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import NamedTuple

from h2.errors import ErrorCodes

__all__ = ["MAX_CONTENT_BYTES", "MAX_HEADER_BYTES", "BadFrame", "Content", "FrameCutter"]

#: Largest frame of content. It may be large since it is not held; other calls of the connection must wait for its end.
MAX_CONTENT_BYTES = 1 << 18
#: Largest frame of another kind, and largest list of headers. gRPC's own libraries allow 8 to 16 KiB of headers.
MAX_HEADER_BYTES = 1 << 14

#: Frames without content that a client may send at once, and a second. A client that cancels all its calls, or that
#: keeps its connection alive with pings, sends far fewer. Such a frame costs 20 to 100 µs.
_BURST, _PER_SECOND = 1000.0, 100.0
#: Such frames that each answered call pays for: resets, window updates and pings that a busy client needs.
_PER_CALL = 8.0

_NOTHING = memoryview(b"")
_PREFACE_BYTES = 24  # PRI * HTTP/2.0 ...; h2 checks it
_HEAD_BYTES = 9
_DATA, _HEADERS, _GOAWAY, _CONTINUATION = 0, 1, 7, 9
_END_STREAM, _END_HEADERS, _PADDED = 0x1, 0x4, 0x8


class BadFrame(Exception):  # noqa: N818 - says what the frame is
    """A frame that the connection must not go on after; ``code`` is the reason as HTTP/2 counts them."""

    def __init__(self, reason: str, code: ErrorCodes) -> None:
        super().__init__(reason)
        self.code = code


class Content(NamedTuple):
    """A piece of a call's content.

    Attributes:
        stream: number of the stream.
        data: the bytes.
        size: how many bytes of the client's window the piece has used; padding counts.
    """

    stream: int
    data: memoryview
    size: int


class FrameCutter:
    r"""Cuts the bytes of one connection into content and frames for h2, a few frames at a time.

    Frames that carry no request (RST_STREAM, PING, SETTINGS, PRIORITY, WINDOW_UPDATE, empty or padded DATA, parts of
    headers) cost the sender nothing. Each takes from a budget, which time and answered calls fill up again.

    A client's GOAWAY is taken out: h2 would end the connection, while the calls in progress must be answered.

    Args:
        now: the clock, in seconds.

    Attributes:
        goaway: whether the client has said that it makes no more calls.
        waiting: bytes that were left when the last frames were taken, and could be taken now.

    Example:
        >>> cutter = FrameCutter()
        >>> cutter.add(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 2, 0, 1, 0, 0, 0, 1]) + b"ab")
        >>> preface, content, end = cutter.take(frames=8)
        >>> len(preface), content.stream, bytes(content.data), end.hex()
        (24, 1, b'ab', '000000000100000001')
    """

    def __init__(self, now: Callable[[], float] = monotonic) -> None:
        self.goaway = False
        self.waiting = 0
        self._now = now
        self._data = _NOTHING
        self._left = _PREFACE_BYTES  # bytes of the current frame that are still to come, without padding
        self._padding = 0  # bytes to leave out after them
        self._stream = 0  # of the current frame, if it has content
        self._ends = False  # whether that frame ends its stream
        self._budget = _BURST
        self._filled = now()
        self._headers = 0  # bytes of the headers whose end has not come
        self._in_headers = False

    def add(self, data: bytes | memoryview) -> None:
        """Take bytes in, in the order of their arrival; they are not copied before `keep`."""
        self._data = memoryview(bytes(self._data) + data if self._data else data)

    def keep(self) -> None:
        """Copy the bytes that were not taken: the memory that they were read into is used again."""
        if self._data:
            self._data = memoryview(bytes(self._data))

    def call_answered(self) -> None:
        """Add the share of one call to the budget."""
        self._budget = min(_BURST, self._budget + _PER_CALL)

    def take(self, frames: int) -> list[memoryview | Content]:
        """Return the next frames, at most so many: views of bytes for h2, and content. A frame may come in pieces.

        Raises:
            BadFrame: a limit was exceeded; the connection should end.
        """
        parts: list[memoryview | Content] = []
        data, size = self._data, len(self._data)
        position = start = 0  # from start to position: for h2
        complete = True  # whether all that could be taken was taken
        for _ in range(frames):
            if self._left or self._padding:
                position, start = self._go_on(parts, start, position)
                if self._left or self._padding:
                    break
            if size - position < _HEAD_BYTES:
                break
            length = int.from_bytes(data[position : position + 3], "big")
            kind, flags = data[position + 3], data[position + 4]
            if kind == _DATA:
                if flags & _PADDED and length and size - position == _HEAD_BYTES:
                    break  # the length of the padding comes first
                if start < position:
                    parts.append(data[start:position])
                start = position = self._begin_content(parts, position, length, flags)
            else:
                self._check(kind, flags, length)
                if kind == _GOAWAY:
                    if start < position:
                        parts.append(data[start:position])
                    self._padding = length
                    start = position = position + _HEAD_BYTES
                else:
                    self._left = length
                    position += _HEAD_BYTES
        else:
            complete = False
        if self._left or self._padding:
            position, start = self._go_on(parts, start, position)
        if start < position:
            parts.append(data[start:position])
        self._data = data[position:] if position < size else _NOTHING
        self.waiting = 0 if complete else len(self._data)
        return parts

    def _go_on(self, parts: list[memoryview | Content], start: int, position: int) -> tuple[int, int]:
        """Go on in the current frame; return the new position, and where the bytes for h2 begin."""
        data = self._data
        step = min(self._left, len(data) - position)
        self._left -= step
        if not self._stream:
            position += step
            if self._padding and not self._left:  # a GOAWAY
                skip = min(self._padding, len(data) - position)
                self._padding -= skip
                return position + skip, position + skip
            return position, start
        padding = min(self._padding, len(data) - position - step) if not self._left else 0
        self._padding -= padding
        if step or padding:
            parts.append(Content(self._stream, data[position : position + step], step + padding))
        position += step + padding
        if not self._left and not self._padding:
            self._end_content(parts)
        return position, position

    def _begin_content(self, parts: list[memoryview | Content], position: int, length: int, flags: int) -> int:
        data = self._data
        if self._in_headers:
            raise BadFrame("content within headers", ErrorCodes.PROTOCOL_ERROR)
        if length > MAX_CONTENT_BYTES:
            raise BadFrame(f"content of more than {MAX_CONTENT_BYTES} bytes", ErrorCodes.FRAME_SIZE_ERROR)
        self._stream = int.from_bytes(data[position + 5 : position + 9], "big") & 0x7FFFFFFF
        if not self._stream:
            raise BadFrame("content of no stream", ErrorCodes.PROTOCOL_ERROR)
        self._ends = bool(flags & _END_STREAM)
        self._left = length
        position += _HEAD_BYTES
        if flags & _PADDED or not (length or self._ends):
            self._charge()
        if flags & _PADDED:
            self._padding = data[position] if length else 1
            if self._padding >= length:
                raise BadFrame("more padding than content", ErrorCodes.PROTOCOL_ERROR)
            self._left = length - 1 - self._padding
            parts.append(Content(self._stream, _NOTHING, 1))
            position += 1
        if not self._left and not self._padding:
            self._end_content(parts)
        return position

    def _end_content(self, parts: list[memoryview | Content]) -> None:
        if self._ends:
            parts.append(memoryview(bytes((0, 0, 0, _DATA, _END_STREAM)) + self._stream.to_bytes(4, "big")))
        self._stream = 0

    def _check(self, kind: int, flags: int, length: int) -> None:
        if length > MAX_HEADER_BYTES:  # h2 would wait for all of it before it checks
            raise BadFrame(f"a frame of more than {MAX_HEADER_BYTES} bytes", ErrorCodes.FRAME_SIZE_ERROR)
        if kind == _GOAWAY:
            self.goaway = True
        if kind in (_HEADERS, _CONTINUATION):
            self._headers = length + (self._headers if kind == _CONTINUATION else 0)
            if self._headers > MAX_HEADER_BYTES:
                raise BadFrame(f"headers of more than {MAX_HEADER_BYTES} bytes", ErrorCodes.ENHANCE_YOUR_CALM)
            self._in_headers = not flags & _END_HEADERS
        if kind != _HEADERS:
            self._charge()

    def _charge(self) -> None:
        now = self._now()
        self._budget = min(_BURST, self._budget + (now - self._filled) * _PER_SECOND) - 1
        self._filled = now
        if self._budget < 0:
            raise BadFrame("too many frames without content", ErrorCodes.ENHANCE_YOUR_CALM)

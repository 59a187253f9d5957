"""Messages of gRPC in the bytes of a stream: a flag of compression, the length in four bytes, the content."""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from trtkp.serving.admission.memory import Account
from trtkp.serving.admission.turns import Turns
from trtkp.serving.errors import BadRequest, NoMemory, TooLarge

__all__ = ["PREFIX_BYTES", "Buffer", "Message", "MessageReader", "inflate", "prefix"]

#: The content of a message.
Buffer: TypeAlias = bytes | bytearray | memoryview

PREFIX_BYTES = 5

#: Messages from this size on get pages of their own, which the system gets back at once; pieces of the heap stay.
_MAP_BYTES = 1 << 20
#: So much of a message must have come before its pages are asked for: its length alone costs nothing.
_FIRST_BYTES = 1 << 18
_PRIVATE: dict[str, Any] = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
#: Bytes that are inflated before other requests get their turn: 1 to 2 ms.
_SLICE = 1 << 18


@dataclass(frozen=True, slots=True)
class Message:
    """The content of a message as received, and whether it is compressed."""

    data: Buffer
    compressed: bool


class MessageReader:
    """Cuts the bytes of a stream into messages. A message that is too large is refused by its length alone.

    Args:
        limit: returns the most bytes that a message may have.

    Attributes:
        length: bytes of the last message that began.
        compressed: whether that message is compressed.

    Example:
        >>> reader = MessageReader(lambda: 100)
        >>> list(reader.feed(bytes([0, 0, 0, 0, 2]) + b"a")), reader.inside
        ([], True)
        >>> list(reader.feed(b"b"))
        [Message(data=bytearray(b'ab'), compressed=False)]
    """

    __slots__ = ("_filled", "_head", "_limit", "_pages", "_part", "compressed", "length")

    def __init__(self, limit: Callable[[], int]) -> None:
        self._limit = limit
        self._head = b""
        self._part: bytearray | None = None  # the beginning of the message that is incomplete
        self._pages: memoryview | None = None  # all of it, once enough has come
        self._filled = 0
        self.length = 0
        self.compressed = False

    @property
    def inside(self) -> bool:
        """Whether a message has begun and not ended."""
        return self._part is not None or bool(self._head)

    @property
    def part(self) -> bytearray | None:
        """The first bytes of the incomplete message: all that came, or enough to see what it is."""
        return self._part

    def feed(self, data: bytes | memoryview) -> Iterator[Message]:
        """Take bytes in, and give the messages that they complete.

        Raises:
            BadRequest: the flag of compression is neither 0 nor 1.
            TooLarge: a message's length is above the limit.
        """
        start, end = 0, len(data)
        while start < end:
            if self._part is None:
                if self._head or end - start < PREFIX_BYTES:
                    missing = PREFIX_BYTES - len(self._head)
                    self._head += data[start : start + missing]
                    start += missing
                    if len(self._head) < PREFIX_BYTES:
                        return
                    head, self._head = self._head, b""
                else:
                    head = bytes(data[start : start + PREFIX_BYTES])
                    start += PREFIX_BYTES
                self._begin(head)
                if end - start >= self.length:
                    stop = start + self.length
                    yield Message(bytes(data[start:stop]), self.compressed)
                    start = stop
                else:
                    self._part, self._filled = bytearray(), 0
            if self._part is not None:
                step = min(end - start, self.length - self._filled)
                self._append(data[start : start + step])
                start += step
                if self._filled == self.length:
                    whole, self._part, self._pages = self._pages or self._part, None, None
                    yield Message(whole, self.compressed)

    def _append(self, data: bytes | memoryview) -> None:
        assert self._part is not None
        if self._pages is None and self.length >= _MAP_BYTES and self._filled >= _FIRST_BYTES:
            try:
                self._pages = memoryview(mmap.mmap(-1, self.length, **_PRIVATE))
            except OSError:
                raise NoMemory("the system has no memory for this message", remedy="try again later") from None
            self._pages[: self._filled] = self._part
            self._part.clear()
        if self._pages is None:
            self._part += data
        else:
            self._pages[self._filled : self._filled + len(data)] = data
        self._filled += len(data)

    def _begin(self, head: bytes) -> None:
        if head[0] > 1:
            raise BadRequest(f"a message begins with {head[0]}, which is no flag of compression")
        self.compressed = head[0] == 1
        self.length = int.from_bytes(head[1:], "big")
        if self.length > (limit := self._limit()):
            raise TooLarge(f"a message of {self.length} bytes is larger than {limit} bytes")


async def inflate(data: Buffer, encoding: str, limit: int, account: Account, turns: Turns) -> bytearray:
    """Undo the compression of a message, a slice at a time.

    Args:
        data: the compressed content.
        encoding: ``gzip`` or ``deflate``.
        limit: largest size in bytes. A few bytes could otherwise expand to gigabytes.
        account: counts the bytes as they appear.
        turns: for the work, a slice at a time.

    Raises:
        BadRequest: the data is broken or incomplete.
        TooLarge: the message is larger than the limit.
        ServeError: the account has no room.

    Example:
        >>> import asyncio
        >>> from trtkp.serving.admission.memory import Memory
        >>> from trtkp.serving.admission.turns import Turns
        >>> account = Memory(1000).account("connection")
        >>> asyncio.run(inflate(zlib.compress(b"abc"), "deflate", 100, account, Turns()))
        bytearray(b'abc')
    """
    inflater = zlib.decompressobj(wbits=47)  # 32 to detect the header, gzip's or zlib's, plus 15 for any window size
    plain = bytearray()
    view = memoryview(data)
    for start in range(0, len(view), _SLICE):  # in pieces: what zlib leaves over of its input is a copy each time
        rest: bytes | memoryview = view[start : start + _SLICE]
        more = True
        while more and not inflater.eof:  # a shorter one has used all of the input
            async with turns:
                try:
                    piece = inflater.decompress(rest, _SLICE)
                except zlib.error:
                    raise BadRequest(f"the message is not valid {encoding}") from None
                if len(plain) + len(piece) > limit:
                    raise TooLarge(f"the decompressed message is larger than {limit} bytes")
                account.grow(len(piece))
                plain += piece
            rest = inflater.unconsumed_tail
            more = len(piece) == _SLICE
    if not inflater.eof:
        raise BadRequest(f"the {encoding} message is cut short")
    return plain


def prefix(length: int) -> bytes:
    """The bytes before a message that is not compressed.

    Example:
        >>> prefix(258).hex()
        '0000000102'
    """
    return b"\0" + length.to_bytes(4, "big")

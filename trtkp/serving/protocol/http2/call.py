"""One gRPC call: the messages that came, the answers that are still to be sent, and what it may take and wait for."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, TypeAlias

from trtkp.serving.admission.deadlines import Deadlines
from trtkp.serving.admission.memory import Account
from trtkp.serving.errors import BadRequest, TimedOut
from trtkp.serving.protocol.http2.head import CallHead, Headers, Status, trailers
from trtkp.serving.protocol.http2.messages import PREFIX_BYTES, Buffer, Message, MessageReader, inflate, prefix

if TYPE_CHECKING:
    from trtkp.serving.protocol.http2.connection import Connection

__all__ = ["MESSAGE_BYTES", "Answer", "Call", "Method"]

#: Memory of a message that waits in a stream, without its content: clients may send empty ones.
MESSAGE_BYTES = 128

#: The content of a message, in parts that are sent one after the other.
Answer: TypeAlias = Sequence[bytes | memoryview]

#: Answers of up to this many bytes are sent as one frame, in one piece: joining them is cheaper than several frames.
_JOIN = 1 << 14


@dataclass(frozen=True)
class Method:
    """How the calls of one method are answered; one of the three functions is given.

    Attributes:
        limit: returns the most bytes of a message.
        quick: answers at once, in less than a millisecond.
        unary: answers one message.
        stream: answers every message of a stream, one after the other.
        check: is given the first bytes and the length of a message that is still arriving; it raises a `ServeError` if
            the message would be refused anyway.
        open: whether it needs no token.
        health: whether it is answered whatever the load.
    """

    limit: Callable[[], int]
    quick: Callable[[Buffer], bytes] | None = None
    unary: Callable[[Buffer, Call], Awaitable[Answer]] | None = None
    stream: Callable[[Buffer, Call], Awaitable[Answer]] | None = None
    check: Callable[[bytes | bytearray, int], None] | None = None
    open: bool = False
    health: bool = False


class Call:
    """A call in progress.

    Attributes:
        head: its headers.
        method: how it is answered.
        account: the memory that it holds.
    """

    __slots__ = (
        "_changed",
        "_connection",
        "account",
        "answered",
        "began",
        "busy",
        "checked",
        "ended",
        "head",
        "held",
        "id",
        "left",
        "method",
        "moved",
        "output",
        "reader",
        "size",
        "task",
        "trailers",
        "unacknowledged",
        "waiting",
    )

    def __init__(self, connection: Connection, number: int, head: CallHead, method: Method, account: Account) -> None:
        self.id = number
        self.head = head
        self.method = method
        self.account = account
        self.reader = MessageReader(method.limit)
        self.waiting: deque[Message] = deque()  # complete messages that were not taken yet
        self.ended = False  # the client sends no more
        self.answered = False  # the first headers were sent
        self.checked = False  # the method has seen the first bytes of a message
        self.task: asyncio.Task[None] | None = None
        self.output: deque[memoryview] = deque()
        self.trailers: Headers | None = None
        self.busy = False  # a message of a stream is being answered
        self.held = 0  # bytes of the message that was received last
        self.left = 0  # bytes of the first part of the output that were sent
        self.unacknowledged = 0  # bytes for which the client's window was not opened again
        self.size = 0  # bytes of the output since there was none
        self.began = self.moved = (
            monotonic()
        )  # start of the message that comes, or of the output, and its last progress
        self._changed: asyncio.Event | None = None
        self._connection = connection

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the client gives up, at least a millisecond; None if it never does."""
        return None if self.head.end is None else max(1e-3, self.head.end - monotonic())

    def wake(self) -> None:
        """Wake the task: a message came, the stream ended, or all output was sent."""
        if self._changed is not None:
            self._changed.set()

    async def receive(self) -> Buffer | None:
        """Wait for the next message and return its content, decompressed; None at the end of the stream.

        The account holds the message until the next one is received, or until the call ends.

        Raises:
            ServeError: the message cannot be decompressed, or is too large for it.
        """
        self.account.shrink(self.held)
        self.held = 0
        while not self.waiting:
            if self.ended:
                return None
            await self._change()
        message = self.waiting.popleft()
        self.held = (
            0
            if self.method.health
            else len(message.data) + PREFIX_BYTES + (MESSAGE_BYTES if self.method.stream is not None else 0)
        )
        self._connection.consumed(self)
        if not message.compressed:
            return message.data
        if self.head.encoding == "identity":
            raise BadRequest("a message is compressed, but the call has no grpc-encoding")
        plain = await inflate(
            message.data, self.head.encoding, self.method.limit(), self.account, self._connection.turns
        )
        self.account.shrink(self.held)
        self.held = len(plain)
        return plain

    def hold(self, size: int) -> None:
        """Count what a message needs beyond its own bytes, until the next one is received, or until the call ends.

        Raises:
            NoMemory: the connection would hold too much.
        """
        self.account.grow(size)
        self.held += size

    def send(self, answer: Answer) -> None:
        """Queue a message; it leaves as the client opens its window, and the account holds it until then."""
        size = sum(map(len, answer))
        self.account.grow(size + PREFIX_BYTES)
        if not self.output:
            self.began = self.moved = monotonic()
            self.size = 0
        self.size += size
        if size < _JOIN:
            self.output.append(memoryview(b"".join((prefix(size), *answer))))
        else:
            self.output.append(memoryview(prefix(size)))
            self.output.extend(memoryview(part) for part in answer)

    async def sent(self) -> None:
        """Wait until all output has been sent."""
        while self.output:
            await self._change()

    def finish(self, status: Status = Status.OK, message: str = "") -> None:
        """End the call when all of its output has been sent."""
        self.trailers = trailers(status, message)

    def late(self, deadlines: Deadlines, now: float) -> TimedOut | None:
        """Why the call has taken too long so far; None while it has not. Its output has limits of its own."""
        if self.method.stream is None and self.task is not None:
            return None  # the work has its own limit
        if self.head.end is not None and now > self.head.end:
            return TimedOut("the client's deadline has passed")
        if self.busy:
            return None
        if self.method.stream is not None and not self.reader.inside:
            return TimedOut(f"no message for {deadlines.idle_s:g} s") if now - self.moved > deadlines.idle_s else None
        if now - self.moved > deadlines.step_s or now - self.began > deadlines.transfer_s(self.reader.length):
            return TimedOut("the message did not arrive in time")
        return None

    def cancel(self) -> None:
        """End the work: the client will not read its result."""
        if self.task is not None and not self.task.done():
            self.task.cancel()

    async def _change(self) -> None:
        if self._changed is None:
            self._changed = asyncio.Event()
        self._changed.clear()
        await self._changed.wait()

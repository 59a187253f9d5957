"""One HTTP/2 connection with the gRPC calls on it."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar

import h2.events as h2e
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings
from hyperframe.frame import GoAwayFrame, WindowUpdateFrame

from trtkp.serving.errors import BadRequest, ServeError, Unavailable
from trtkp.serving.logs import log
from trtkp.serving.protocol.http2.call import MESSAGE_BYTES, Call
from trtkp.serving.protocol.http2.frames import MAX_CONTENT_BYTES, MAX_HEADER_BYTES, BadFrame, Content, FrameCutter
from trtkp.serving.protocol.http2.head import RESPONSE, CallHead, Headers, NotGrpc, Status, Unimplemented, trailers
from trtkp.serving.protocol.http2.messages import Buffer

if TYPE_CHECKING:
    from trtkp.serving.protocol.http2.server import Http2Server

__all__ = ["Connection"]

#: Calls of a connection at once; a client keeps further ones back until one is answered.
_CALLS = 100
_FIRST_WINDOW = 65_535  # of a connection, by the standard
#: Bytes that a client may send ahead. Of a stream: as much as may wait behind the message that is being answered.
#: Of the connection: opened again with every byte that arrives, since each is counted, or refused, at once.
_STREAM_WINDOW, _CONNECTION_WINDOW = 1 << 20, 1 << 24
#: Memory of a call without its messages, here and in h2 (measured: 9 KB).
_CALL_BYTES = 1 << 14
#: Calls of a connection that the account does not count if they ask for the server's health.
_FREE_CALLS = 4
#: Bytes of an incomplete message that are enough to see which model it is for.
_CHECK_BYTES = 1 << 10
#: Frames that are interpreted before other connections get their turn: about 1 ms.
_FRAMES = 16
#: Bytes of answers that are sent before other connections get their turn: about 1 ms.
_WRITE_BYTES = 1 << 18
#: Seconds in which calls that were on their way are refused before a connection closes.
_LINGER_S = 0.5
#: In a GOAWAY: streams of every number are still answered.
_ALL_STREAMS = 2**31 - 1


class _H2(H2Connection):
    #: h2 remembers how streams ended, by default of 65,536, which is 6 MB for each connection.
    MAX_CLOSED_STREAMS = 1024

    def __init__(self) -> None:
        super().__init__(
            H2Configuration(
                client_side=False,
                header_encoding=None,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: _CALLS,
                SettingCodes.MAX_HEADER_LIST_SIZE: MAX_HEADER_BYTES,
                SettingCodes.INITIAL_WINDOW_SIZE: _STREAM_WINDOW,
                SettingCodes.MAX_FRAME_SIZE: MAX_CONTENT_BYTES,
            },
        )
        self.decoder.max_header_list_size = MAX_HEADER_BYTES


class Connection(asyncio.BufferedProtocol):
    """Takes the frames of a client, and answers its calls.

    Every byte of a message is counted by the account of its call as it arrives, or the call is refused. Answers leave
    as the client opens its windows and reads.

    Args:
        server: the server, with its methods and limits.
        link: the socket.
    """

    def __init__(self, server: Http2Server, link: socket.socket) -> None:
        self.calls: dict[int, Call] = {}
        self.idle_since = monotonic()
        self.turns = server.turns
        self.queued = False  # waits in the server's line
        self._server = server
        self._link = link
        self._transport: Any = None  # an asyncio.Transport, once the connection was made
        self._h2 = _H2()
        self._frames = FrameCutter()
        self._backlog = server.memory.account(self)  # frames that wait
        self._held = 0
        self._opened = False  # the client has sent its preface and settings
        self._blocked = False  # the transport's buffer is full
        self._blocked_since = 0.0
        self._reading = True
        self._turn_over = False  # as much was read as one connection may at a time
        self._computed = 0  # calls that the server computes
        self._closing = False
        self._flushing = False  # `_flush` will be called
        self._highest = 0  # the last stream that was begun
        self._window = _CONNECTION_WINDOW  # bytes that the client may send
        self._refused: dict[int, Headers | None] = {}  # streams and their answers; None to let the client try again
        self._ended: set[int] = set()  # of the refused streams, those that the client has ended
        self._taken: dict[int, Call] = {}  # calls whose windows are to be opened
        self._outgoing: dict[int, Call] = {}  # calls with output, in the order in which they get their turn
        self._starved: dict[int, Call] = {}  # of these, those whose window is closed

    # --- the transport ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Send the server's settings."""
        self._transport = transport
        self._server.remember(self)
        ssl = transport.get_extra_info("ssl_object")
        if ssl is not None and ssl.selected_alpn_protocol() != "h2":
            self._close()
            return
        self._h2.initiate_connection()
        self._write()
        self._open_window(0, _CONNECTION_WINDOW - _FIRST_WINDOW)

    def get_buffer(self, size: int) -> memoryview:
        """Give the memory to read into."""
        return self._server.buffer

    def buffer_updated(self, size: int) -> None:
        """Interpret what arrived, or the first frames of it."""
        self._frames.add(self._server.buffer[:size])
        self.work()
        self._frames.keep()
        if size == len(self._server.buffer):
            # More has come. libuv would read on, 32 times, before it looks at another connection: 4 MiB of each.
            self._turn_over = True
            self._control_reading()
            self._server.loop.call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._turn_over = False
        self._control_reading()

    def eof_received(self) -> bool:
        """Close the connection: a client that sends no more frames cannot open windows either."""
        return False  # the transport closes itself

    def connection_lost(self, error: Exception | None) -> None:
        """Give up all calls."""
        self._closing = True
        for call in list(self.calls.values()):
            self._end(call)
        self._backlog.close()
        self._server.forget(self)

    def pause_writing(self) -> None:
        """Send nothing: the client reads too slowly."""
        self._blocked = True
        self._blocked_since = monotonic()
        self._control_reading()

    def resume_writing(self) -> None:
        """Go on sending."""
        self._blocked = False
        self._flush()
        self._control_reading()

    def _control_reading(self) -> None:
        """Read nothing while bytes wait to be interpreted, or while answers to pings and settings are not read."""
        reading = not (self._frames.waiting or self._blocked or self._turn_over)
        if reading != self._reading and not self._transport.is_closing():
            self._reading = reading
            if reading:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    # --- frames in ----------------------------------------------------------------------------------------------------

    def work(self) -> None:
        """Interpret some of the frames that have arrived; the rest waits in the server's line."""
        if self._transport.is_closing():
            return
        try:
            for part in self._frames.take(_FRAMES):
                if isinstance(part, Content):
                    self._on_content(part)
                    continue
                for event in self._h2.receive_data(part):
                    if (handler := self._HANDLERS.get(type(event))) is not None:
                        handler(self, event)
        except BadFrame as bad:
            self._quit(bad.code, str(bad))
            return
        except ProtocolError:  # h2 has put its GOAWAY into the output
            self._write()
            self._close()
            return
        self._flush()
        if self._frames.goaway:
            self.close_when_idle()
        self._backlog.shrink(self._held)
        self._held = self._frames.waiting
        if self._held:
            try:
                self._backlog.grow(self._held)
            except ServeError:
                self._held = 0
                self._quit(ErrorCodes.ENHANCE_YOUR_CALM, "no memory for the frames that wait")
                return
            if not self.queued:
                self.queued = True
                self._server.queue(self)
        self._control_reading()

    # h2 interprets several frames before their events are handled here, so a stream may be reset already when its
    # request is looked at. Nothing is therefore sent before the turn ends, in `_flush`.

    def _on_request(self, event: h2e.RequestReceived) -> None:
        number = self._highest = event.stream_id
        self._opened = True
        if (stream := self._h2.streams.get(number)) is not None:
            # h2 would miss the content that does not pass through it, if the client said how long it is.
            stream._expected_content_length = None
        if self._closing:
            self._refused[number] = None
            return
        try:
            head = CallHead.of(event.headers)
            method = self._server.methods.get(head.path)
            if method is None:
                raise Unimplemented(f"no method {head.path[:80]}")
            if not method.open:
                head.authorise(self._server.token)
            if not method.health and self._server.connections.health_only(self):
                raise Unavailable("all connections are in use", remedy="try again later")
            account = self._server.memory.account(self)
            self.calls[number] = Call(self, number, head, method, account)
            self._server.connections.touch(self)
            if not method.health or len(self.calls) > _FREE_CALLS:
                account.grow(_CALL_BYTES)
        except NotGrpc as refusal:
            self._refused[number] = [(b":status", b"%d" % refusal.status)]
        except ServeError as error:
            self._refused[number] = [*RESPONSE, *trailers(Status[error.code], str(error))]
            if (call := self.calls.get(number)) is not None:
                self._end(call)

    def _on_content(self, content: Content) -> None:
        number, data, size = content
        self._window -= size
        if self._window < 0:
            raise BadFrame("more content than the connection's window", ErrorCodes.FLOW_CONTROL_ERROR)
        if self._window <= _CONNECTION_WINDOW // 2:
            self._open_window(0, _CONNECTION_WINDOW - self._window)
            self._window = _CONNECTION_WINDOW
        call = self.calls.get(number)
        if call is None or call.trailers is not None or call.ended:
            if number > self._highest:
                raise BadFrame("content of a stream that was not opened", ErrorCodes.PROTOCOL_ERROR)
            return  # refused, reset or answered; the frame was on its way
        call.unacknowledged += size
        if call.unacknowledged > _STREAM_WINDOW:
            raise BadFrame("more content than the stream's window", ErrorCodes.FLOW_CONTROL_ERROR)
        try:
            if data:
                self._take(call, data)
        except ServeError as error:
            self._fail(call, error)
            return
        if call.method.stream is None or not call.waiting:
            self.consumed(call)

    def _take(self, call: Call, data: memoryview) -> None:
        if call.method.stream is not None and not call.reader.inside and not call.waiting:
            call.began = monotonic()
        call.moved = monotonic()
        self._server.connections.touch(self)
        before = len(call.waiting)
        if not call.method.health:
            call.account.grow(len(data))
        call.waiting.extend(call.reader.feed(data))
        if call.method.stream is not None:
            call.account.grow(MESSAGE_BYTES * (len(call.waiting) - before))
        if call.method.stream is None:
            if len(call.waiting) + call.reader.inside > 1:
                raise BadRequest(f"more than one message for {call.head.path}")
        elif call.waiting:
            if call.task is None:
                call.task = self._server.run(self._work(call, self._stream(call)))
            call.wake()
        part = call.reader.part
        if not call.checked and call.method.check is not None and part is not None and len(part) >= _CHECK_BYTES:
            call.checked = True
            if not call.reader.compressed:
                call.method.check(part, call.reader.length)

    def consumed(self, call: Call) -> None:
        """Let the client send as much as was taken from its stream."""
        if call.unacknowledged >= _STREAM_WINDOW // 2 and not call.ended:
            self._taken[call.id] = call
            if call.task is not None:
                self._flush_soon()

    def _on_end(self, event: h2e.StreamEnded) -> None:
        call = self.calls.get(event.stream_id)
        if call is None:
            self._ended.add(event.stream_id)
            return
        call.ended = True
        method = call.method
        if call.trailers is not None:
            return
        if call.reader.inside or (method.stream is None and not call.waiting):
            self._fail(call, BadRequest("the stream ends before its message does"))
        elif method.quick is not None:
            self._answer(call, method.quick)
        elif method.stream is None:
            call.task = self._server.run(self._work(call, self._unary(call)))
        elif call.task is None:
            self._finish(call)
        else:
            call.wake()

    def _on_reset(self, event: h2e.StreamReset) -> None:
        if (call := self.calls.get(event.stream_id)) is not None:
            self._end(call)
        else:
            self._refused.pop(event.stream_id, None)

    def _on_window(self, event: h2e.WindowUpdated) -> None:
        if event.stream_id == 0:
            self._outgoing.update(self._starved)
            self._starved.clear()
        elif (call := self._starved.pop(event.stream_id, None)) is not None:
            self._outgoing[call.id] = call

    def _on_settings(self, event: h2e.RemoteSettingsChanged) -> None:
        self._opened = True
        self._outgoing.update(self._starved)  # the initial window may have changed
        self._starved.clear()

    _HANDLERS: ClassVar[dict[type, Callable[[Connection, Any], None]]] = {
        h2e.RequestReceived: _on_request,
        h2e.StreamEnded: _on_end,
        h2e.StreamReset: _on_reset,
        h2e.WindowUpdated: _on_window,
        h2e.RemoteSettingsChanged: _on_settings,
    }

    # --- answers ------------------------------------------------------------------------------------------------------

    def _answer(self, call: Call, quick: Callable[[Buffer], bytes]) -> None:
        if call.waiting[0].compressed:
            call.task = self._server.run(self._work(call, self._answer_later(call, quick)))
            return
        try:
            call.send([quick(call.waiting.popleft().data)])
        except ServeError as error:
            self._fail(call, error)
        else:
            self._finish(call)

    async def _work(self, call: Call, work: Coroutine[Any, Any, None]) -> None:
        """Run the work of a call and end the call, whatever happens."""
        try:
            await work
        except ServeError as error:
            self._fail(call, error)
        except Exception as error:  # a fault of the server
            log("call failed", level=logging.ERROR, path=call.head.path, error=f"{type(error).__name__}: {error}")
            self._fail(call, ServeError("internal error, see the server's log"))
        else:
            self._finish(call)
        self._flush_soon()

    async def _answer_later(self, call: Call, quick: Callable[[Buffer], bytes]) -> None:
        data = await call.receive()
        assert data is not None
        call.send([quick(data)])

    async def _unary(self, call: Call) -> None:
        data = await call.receive()
        assert data is not None
        assert call.method.unary is not None
        with self._computing(call):
            answer = await call.method.unary(data, call)
        call.send(answer)

    @contextmanager
    def _computing(self, call: Call) -> Iterator[None]:
        call.busy = True
        self._computed += 1
        self._server.connections.busy(self)
        try:
            yield
        finally:
            call.busy = False
            self._computed -= 1
            if not self._computed:
                self._server.connections.idle(self)

    async def _stream(self, call: Call) -> None:
        assert call.method.stream is not None
        while (data := await call.receive()) is not None:
            with self._computing(call):
                answer = await call.method.stream(data, call)
            call.send(answer)
            self._outgoing[call.id] = call
            self._flush_soon()
            await call.sent()

    def _fail(self, call: Call, error: ServeError) -> None:
        if self.calls.get(call.id) is call:
            call.finish(Status[error.code], str(error))
            self._outgoing[call.id] = call

    def _finish(self, call: Call) -> None:
        if self.calls.get(call.id) is call:
            call.finish()
            self._outgoing[call.id] = call

    def _end(self, call: Call) -> None:
        """Forget a call: it was answered in full, or the client has gone."""
        if self.calls.pop(call.id, None) is None:
            return
        self._outgoing.pop(call.id, None)
        self._starved.pop(call.id, None)
        call.cancel()  # of a call that has failed, a task may wait for messages that nobody takes in any more
        call.account.close()
        if not self.calls:
            self.idle_since = monotonic()
            self._server.idle(self)
            if self._closing:
                self._close_soon()

    # --- frames out ---------------------------------------------------------------------------------------------------

    def _flush_soon(self) -> None:
        """Send output at the end of this turn: the answers of a batch leave together, in one write (0.2 ms each)."""
        if not self._flushing:
            self._flushing = True
            self._server.loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Send as much output as windows and the transport take, a frame of each call in turn."""
        self._flushing = False
        if self._transport.is_closing():
            return
        self._send_refusals()
        for call in self._taken.values():
            if not call.ended and call.id in self.calls and call.unacknowledged:
                self._open_window(call.id, call.unacknowledged)
                call.unacknowledged = 0
        self._taken.clear()
        size = 0
        while self._outgoing and not self._blocked:
            number, call = next(iter(self._outgoing.items()))
            del self._outgoing[number]
            sent = self._advance(call)
            size += sent
            if call.trailers is not None and not call.output:
                self._close_stream(call)
            elif call.output and sent:
                self._outgoing[number] = call
            elif call.output:
                self._starved[number] = call
            else:
                call.wake()
            if size >= _WRITE_BYTES:
                self._flush_soon()
                break
        self._write()

    def _send_refusals(self) -> None:
        """Answer by headers alone, and tell the client to send no more."""
        for number, headers in self._refused.items():
            if headers is not None:
                self._h2.send_headers(number, headers, end_stream=True)
            if headers is None or number not in self._ended:
                self._h2.reset_stream(number, ErrorCodes.REFUSED_STREAM if headers is None else ErrorCodes.NO_ERROR)
        self._refused.clear()
        self._ended.clear()

    def _advance(self, call: Call) -> int:
        """Send one frame of a call's output, and return its size; 0 if its window is closed."""
        if call.output and not call.answered:
            call.answered = True
            self._h2.send_headers(call.id, RESPONSE)
        if not call.output:
            return 0
        part = call.output[0]
        size = min(len(part), self._h2.local_flow_control_window(call.id), self._h2.max_outbound_frame_size)
        if size <= 0:
            return 0
        self._h2.send_data(call.id, part[:size])
        call.left += size
        if size == len(part):
            call.output.popleft()
            call.account.shrink(call.left)  # not before: what is left keeps the memory of all of it
            call.left = 0
        else:
            call.output[0] = part[size:]
        call.moved = monotonic()
        self._server.connections.touch(self)
        return size

    def _close_stream(self, call: Call) -> None:
        assert call.trailers is not None
        headers = call.trailers if call.answered else [*RESPONSE, *call.trailers]
        self._h2.send_headers(call.id, headers, end_stream=True)
        if not call.ended:
            self._h2.reset_stream(call.id, ErrorCodes.NO_ERROR)
        self._frames.call_answered()
        self._end(call)

    def _open_window(self, stream: int, size: int) -> None:
        # not h2's, which does not see the content that used the window up
        self._transport.write(WindowUpdateFrame(stream, window_increment=size).serialize())

    def _write(self) -> None:
        if data := self._h2.data_to_send():
            self._transport.write(data)

    # --- limits of time, and the end ----------------------------------------------------------------------------------

    def check(self, now: float) -> None:
        """End what took too long: the client's preface, a message, an idle stream, output that nobody reads."""
        deadlines = self._server.deadlines
        if (self._blocked or self._transport.is_closing()) and now - self._blocked_since > deadlines.step_s:
            self._transport.abort()
        if self._transport.is_closing():
            return
        if not self.calls and now - self.idle_since > (deadlines.idle_s if self._opened else deadlines.step_s):
            self.close_when_idle()
        for call in list(self.calls.values()):
            if call.output:
                if now - call.moved > deadlines.step_s or now - call.began > deadlines.transfer_s(call.size):
                    self._h2.reset_stream(call.id, ErrorCodes.CANCEL)
                    self._end(call)
            elif call.trailers is None and (error := call.late(deadlines, now)) is not None:
                call.cancel()
                self._fail(call, error)
        self._flush()

    def drop(self) -> None:
        """End the connection at once, whatever its state."""
        if self._transport is None:  # during the handshake
            with suppress(OSError):
                self._link.shutdown(socket.SHUT_RDWR)
        else:
            self._goaway(self._highest)
            if self._blocked or self._transport.get_extra_info("ssl_object") is not None:
                self._transport.abort()  # closing would wait for the client
            else:
                self._transport.close()

    def drain(self) -> None:
        """Ask the client to make new calls elsewhere; those that come anyway are answered."""
        self._goaway(_ALL_STREAMS)

    def close_when_idle(self) -> None:
        """Answer the calls in progress, refuse others, and end the connection."""
        if not self._closing:
            self._closing = True
            self._goaway(self._highest)
            if not self.calls:
                self._close_soon()

    def close(self) -> None:
        """End the connection now."""
        if not self._closing:
            self._goaway(self._highest)
        self._close()

    def _close(self) -> None:
        """Close the connection when the client has read what was sent; `check` does not wait for that for ever."""
        self._closing = True
        if not self._transport.is_closing():
            self._blocked_since = monotonic()
            self._transport.close()

    def _goaway(self, last: int) -> None:
        # not h2's: after its own GOAWAY it sends nothing more, while calls in progress are still to be answered
        if not self._transport.is_closing():
            self._transport.write(GoAwayFrame(last_stream_id=last).serialize())

    def _close_soon(self) -> None:
        # A call that was on its way is refused meanwhile; closing at once would reset it without an answer.
        self._server.loop.call_later(_LINGER_S, self._close)

    def _quit(self, code: ErrorCodes, reason: str) -> None:
        log("connection ended", protocol="grpc", error=reason)
        self._h2.close_connection(code, reason.encode())
        self._write()
        self._close()

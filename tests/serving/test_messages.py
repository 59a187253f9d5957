"""Messages of gRPC in the bytes of a stream, and their compression."""

from __future__ import annotations

import asyncio
import gzip
import tracemalloc
import zlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.serving.raw_http2 import framed
from tests.serving.stalls import longest_stall
from trtkp.serving.admission.memory import Account, Memory
from trtkp.serving.admission.turns import Turns
from trtkp.serving.errors import BadRequest, NoMemory, ServeError, TooLarge
from trtkp.serving.protocol.http2.messages import Message, MessageReader, inflate


@given(
    messages=st.lists(st.tuples(st.binary(max_size=30), st.booleans()), max_size=6), cuts=st.lists(st.integers(0, 200))
)
def test_messages_for_every_way_of_arrival(messages: list[tuple[bytes, bool]], cuts: list[int]) -> None:
    data = b"".join(framed(content, flag=compressed) for content, compressed in messages)
    places = sorted({0, len(data), *(place for place in cuts if place < len(data))})
    reader = MessageReader(lambda: 30)
    got = [message for a, b in pairwise(places) for message in reader.feed(memoryview(data)[a:b])]
    assert [(bytes(message.data), message.compressed) for message in got] == messages
    assert not reader.inside


def test_a_length_above_the_limit_is_refused_before_a_byte_of_it() -> None:
    with pytest.raises(TooLarge, match="a message of 31 bytes is larger than 30 bytes"):
        list(MessageReader(lambda: 30).feed(framed(b"", 31)))
    reader = MessageReader(lambda: 30)
    got: list[Message] = []
    with pytest.raises(BadRequest, match="begins with 7"):
        got.extend(reader.feed(framed(b"a") + framed(b"b", flag=7)))
    assert [message.data for message in got] == [b"a"]


def account(limit: int = 1 << 30) -> Account:
    return Memory(limit).account("connection")


@given(data=st.binary(max_size=3000), repeat=st.sampled_from([1, 200, 1000]))
def test_inflated(data: bytes, repeat: int) -> None:
    for encoding, packed in (("gzip", gzip.compress(data * repeat)), ("deflate", zlib.compress(data * repeat))):
        one = account()
        assert asyncio.run(inflate(packed, encoding, len(data) * repeat, one, Turns())) == data * repeat
        assert one.held == len(data) * repeat
        if len(packed) > 12:
            with pytest.raises(BadRequest, match=f"not valid {encoding}|{encoding} message is cut short"):
                asyncio.run(inflate(packed[:-5], encoding, len(data) * repeat, account(), Turns()))


@pytest.mark.parametrize(("limit", "room", "error"), [(1 << 20, 1 << 30, TooLarge), (1 << 30, 4 << 20, NoMemory)])
def test_a_bomb_costs_no_more_than_its_limit(limit: int, room: int, error: type[ServeError]) -> None:
    bomb = zlib.compress(bytes(256 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(error):
            asyncio.run(inflate(bomb, "deflate", limit, account(room), Turns()))
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.serial
def test_inflating_lets_others_have_their_turn() -> None:
    packed = zlib.compress(bytes(64 << 20))

    assert (
        longest_stall(lambda: inflate(packed, "deflate", 64 << 20, account(), Turns())) < 0.05
    )  # 1 ms on a quiet machine

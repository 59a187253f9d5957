"""Inference messages cut into tensors and the rest: the same as protobuf's reading, and bounded for hostile ones."""

from __future__ import annotations

import asyncio
import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from tests.serving.stalls import longest_stall
from trtkp.serving.admission.turns import Turns
from trtkp.serving.contract import Contract, TensorContract
from trtkp.serving.datatypes import DATATYPES
from trtkp.serving.errors import BadRequest
from trtkp.serving.protocol.tensors import InferMessage, as_stream_answer, encode, largest_message, name_of, values

FIELDS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents",
}  # fmt: skip


@st.composite
def requests(draw: st.DrawFn) -> Any:
    request = pb.ModelInferRequest(
        model_name=draw(st.text(max_size=200)), model_version=draw(st.text(max_size=3)), id=draw(st.text(max_size=3))
    )
    for name in draw(st.lists(st.text(max_size=4), max_size=3)):
        request.parameters[name].int64_param = draw(st.integers(-(2**63), 2**63 - 1))
    for name in draw(st.lists(st.text(max_size=4), max_size=3)):
        tensor = request.inputs.add(name=name, datatype="FP32", shape=draw(st.lists(st.integers(0, 2**40), max_size=3)))
        if draw(st.booleans()):
            tensor.contents.fp32_contents.extend(draw(st.lists(st.floats(width=32), max_size=4)))
            tensor.contents.int_contents.extend(draw(st.lists(st.integers(-9, 9), max_size=4)))
    request.raw_input_contents.extend(draw(st.lists(st.binary(max_size=300), max_size=3)))
    for name in draw(st.lists(st.text(max_size=4), max_size=2)):
        request.outputs.add(name=name)
    return request


def joined(message: InferMessage) -> Any:
    """The message that was cut into pieces."""
    whole = pb.ModelInferRequest()
    whole.CopyFrom(message.request)
    whole.raw_input_contents.extend(map(bytes, message.raw))
    for tensor, contents in zip(whole.inputs, message.contents, strict=True):
        if contents is not None:
            tensor.contents.MergeFromString(bytes(contents))
    return whole


@given(request=requests())
def test_the_parts_are_the_whole(request: Any) -> None:
    data = request.SerializeToString()
    whole = joined(InferMessage.parse(bytearray(data)))
    assert whole.SerializeToString(deterministic=True) == request.SerializeToString(deterministic=True)
    if request.model_name:
        assert name_of(data) == (request.model_name, request.model_version)


@given(data=st.binary(max_size=60) | st.builds(lambda request, end: request.SerializeToString()[:end],
                                               requests(), st.integers(0, 200)))  # fmt: skip
def test_garbage_and_cut_messages_are_what_protobuf_says(data: bytes) -> None:
    try:
        expected = pb.ModelInferRequest.FromString(data)
    except DecodeError:
        expected = None
    try:
        got = InferMessage.parse(data)
    except BadRequest:
        got = None
    if got is None:
        assert expected is None or 3 in {byte & 7 for byte in data}  # groups are refused; proto3 has none
        return
    if expected is None:  # contents are looked at later
        return
    assert joined(got).SerializeToString(deterministic=True) == expected.SerializeToString(deterministic=True)


def _varint(number: int) -> bytes:
    data = b""
    while number > 127:
        data, number = data + bytes([number & 127 | 128]), number >> 7
    return data + bytes([number])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x2a\x00" * 2_000_000, "more than 4096 fields"),  # inputs
        (b"\x3a\x00" * 2_000_000, "more than 4096 fields"),  # raw tensors
        (b"\x2a" + _varint(4_000_000) + b"\x22\x00" * 2_000_000, "more than 4096 fields"),  # parameters of an input
        (b"\x2a" + _varint(4_000_000) + b"\x1a" + _varint(3_999_995) + bytes(3_999_995), "more than 65536 bytes"),
        (b"\x0a" + _varint(4_000_000) + b"a" * 4_000_000, "more than 65536 bytes"),
    ],
    ids=["inputs", "raw", "parameters", "shape", "name"],
)
def test_hostile_messages_cost_little(data: bytes, words: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(BadRequest, match=words):
            InferMessage.parse(data)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("datatype", FIELDS)
def test_values_of_each_type(datatype: str) -> None:
    dtype = DATATYPES[datatype]
    limits = (
        [0, 1] if dtype.kind == "b" else [0.5, -2] if dtype.kind == "f" else [np.iinfo(dtype).min, np.iinfo(dtype).max]
    )
    contents = pb.InferTensorContents(**{FIELDS[datatype]: [dtype.type(value).item() for value in limits]})
    sent = contents.SerializeToString()
    got = np.frombuffer(asyncio.run(values("x", datatype, sent, Turns())), dtype)
    assert got.tolist() == np.array(limits, dtype).tolist()
    twice = np.frombuffer(asyncio.run(values("x", datatype, sent + sent, Turns())), dtype)  # not in one piece
    assert twice.tolist() == 2 * got.tolist()


def test_values_that_do_not_fit() -> None:
    sent = pb.InferTensorContents(int_contents=[127, 128]).SerializeToString()
    with pytest.raises(BadRequest, match=r"input x: values outside -128..127 of INT8"):
        asyncio.run(values("x", "INT8", sent, Turns()))
    with pytest.raises(BadRequest, match="datatype FP16 needs raw_input_contents"):
        asyncio.run(values("x", "FP16", sent, Turns()))
    assert len(asyncio.run(values("x", "FP32", sent, Turns()))) == 0  # in another type's field
    with pytest.raises(BadRequest, match="need raw_input_contents"):
        asyncio.run(values("x", "INT8", bytes(5 << 20), Turns()))


@pytest.mark.serial
@pytest.mark.parametrize(
    ("datatype", "contents"),
    [
        ("INT8", b"\x12" + _varint(1_000_000) + bytes(1_000_000)),  # packed integers of a byte
        ("INT8", b"\x42\x00" * 500_000),  # empty texts
        ("FP32", b"\x35\x00\x00\x00\x3f" * 200_000),  # floats that are not packed
    ],
    ids=["integers", "texts", "floats"],
)
def test_contents_do_not_stall_the_event_loop(datatype: str, contents: bytes) -> None:
    """The most that is taken, of the slowest kinds: 10 ms."""
    assert longest_stall(lambda: values("x", datatype, contents, Turns())) < 0.25


def test_answers_are_protobufs() -> None:
    outputs = {
        "y": TensorContract("y", "FP32", ("N", 3)),
        "z": TensorContract("z", "BF16", (2,)),
        "e": TensorContract("e", "INT64", (0,)),
    }
    contract = Contract("m", "2", "p", {}, outputs, None)
    arrays = {
        "y": np.arange(300, dtype=np.float32).reshape(3, 100).T[:, ::-1],
        "z": np.array([1, 2], DATATYPES["BF16"]),
        "e": np.zeros(0, np.int64),
    }
    data = b"".join(encode(contract, "7", arrays))
    answer = pb.ModelInferResponse.FromString(data)
    assert (answer.model_name, answer.model_version, answer.id) == ("m", "2", "7")
    for output, raw, (name, array) in zip(answer.outputs, answer.raw_output_contents, arrays.items(), strict=True):
        assert (output.name, list(output.shape), output.datatype) == (name, list(array.shape), outputs[name].datatype)
        assert raw == array.tobytes()
    stream = pb.ModelStreamInferResponse.FromString(b"".join(as_stream_answer(encode(contract, "7", arrays))))
    assert stream.infer_response == answer


def test_the_largest_message() -> None:
    x = TensorContract("x", "FP32", ("N", 1000), low=(1, 1000), high=(4, 1000))
    large = TensorContract("x", "FP32", ("N", 1000), low=(1, 1000), high=(4000, 1000))
    for tensor, most in ((x, 65536 + 4000 * 11), (large, 65536 + 16_000_000)):
        assert largest_message(Contract("m", "1", "p", {"x": tensor}, {}, (1, 4))) == most


def test_many_empty_contents_are_refused_before_they_are_kept() -> None:
    """Two bytes each in the message, and a view of a hundred bytes each in the server."""
    empty = b"\x2a\x00" * 1_000_000
    sent = b"\x2a" + bytes([0x80 | len(empty) & 0x7F, 0x80 | len(empty) >> 7 & 0x7F, len(empty) >> 14]) + empty
    start = time.perf_counter()
    with pytest.raises(BadRequest, match="fields"):
        InferMessage.parse(sent)
    assert time.perf_counter() - start < 1  # 5 ms; a million are a second

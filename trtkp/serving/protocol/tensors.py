"""Inference messages of gRPC without copies of their tensors.

protobuf copies the raw bytes of tensors twice when a message is parsed and read, and twice when one is built: 0.1 s for
64 MiB, in which nothing else is answered. A protobuf message is a row of fields, each with its number and length. So
the raw tensors are cut out of it here as they lie, and put behind an answer in the same way, and protobuf parses what
is left. That is small: its objects take up to 50 times the bytes of a hostile message.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as pb

from trtkp.serving.admission.turns import Turns
from trtkp.serving.contract import Contract
from trtkp.serving.datatypes import DATATYPES
from trtkp.serving.errors import BadRequest

__all__ = ["InferMessage", "as_stream_answer", "encode", "largest_message", "name_of", "values"]

_Buffer: TypeAlias = bytes | bytearray | memoryview

#: Most bytes of a message without its tensors (names, shapes, parameters), and most fields of a message: 6 ms.
_HEAD_BYTES, _FIELDS = 1 << 16, 4096

#: Field of ``InferTensorContents`` that holds the values of each type. FP16 and BF16 have none and need raw bytes.
_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "INT64": "int64_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
#: Types whose packed values lie in a message as they lie in a tensor. The others are integers of varying length.
_AS_THEY_LIE = ("BOOL", "FP32", "FP64")
#: Types that hold every integer of their kind.
_WIDEST = {"i": np.int64, "u": np.uint64}
#: Most bytes of one value: a tag, and up to ten bytes of an integer.
_VALUE_BYTES = 11
#: Most bytes of contents that protobuf parses: 16 ms in the worst case (packed integers or empty texts).
_CONTENTS_BYTES = 1 << 20
#: Values that are converted before other requests get their turn: 3 ms.
_SLICE = 1 << 16

_NAME, _VERSION, _INPUTS, _RAW = (
    pb.ModelInferRequest.DESCRIPTOR.fields_by_name[name].number
    for name in ("model_name", "model_version", "inputs", "raw_input_contents")
)
_TENSOR_CONTENTS = pb.ModelInferRequest.InferInputTensor.DESCRIPTOR.fields_by_name["contents"].number
_RAW_OUTPUT = pb.ModelInferResponse.DESCRIPTOR.fields_by_name["raw_output_contents"].number
_STREAM_ANSWER = pb.ModelStreamInferResponse.DESCRIPTOR.fields_by_name["infer_response"].number

#: Bytes at the beginning of a message that name its model. Of more, thousands of empty fields could be made.
_NAME_BYTES = 4096
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5  # how the length of a field is known


@dataclass
class InferMessage:
    """A parsed ``ModelInferRequest``, whose tensors are views of the message as it was received.

    Attributes:
        request: the message without its tensors.
        raw: the raw bytes of the tensors.
        contents: of every input, the bytes of its ``contents``; None if it has none.

    Example:
        >>> sent = pb.ModelInferRequest(model_name="kep", raw_input_contents=[b"abcd"])
        >>> got = InferMessage.parse(sent.SerializeToString())
        >>> got.request.model_name, bytes(got.raw[0])
        ('kep', b'abcd')
    """

    request: Any
    raw: list[memoryview] = field(default_factory=list)
    contents: list[_Buffer | None] = field(default_factory=list)

    @classmethod
    def parse(cls, data: _Buffer) -> InferMessage:
        """Parse a message.

        Raises:
            BadRequest: the bytes are no such message, or names, shapes and parameters are longer than any model's.
        """
        parsed = cls(None)
        head = bytearray()
        fields = 0
        view = memoryview(data)
        try:
            for number, start, begin, end in _fields(view):
                fields += 1
                if number == _RAW:
                    parsed.raw.append(view[begin:end])
                elif number == _INPUTS:
                    tensor = view[begin:end]
                    rest, contents = bytearray(), []
                    for inner, first, value, last in _fields(tensor):
                        fields += 1
                        if inner == _TENSOR_CONTENTS:
                            _check_size(len(head) + len(rest), fields)  # empty ones cost two bytes each
                            contents.append(tensor[value:last])
                        else:
                            _check_size(len(head) + len(rest) + last - first, fields)
                            rest += tensor[first:last]
                    head += _tag(_INPUTS, len(rest)) + rest
                    parsed.contents.append(
                        (contents[0] if len(contents) == 1 else b"".join(contents)) if contents else None
                    )
                else:
                    _check_size(len(head) + end - start, fields)
                    head += view[start:end]
                _check_size(len(head), fields)
            parsed.request = pb.ModelInferRequest.FromString(bytes(head))
        except (DecodeError, IndexError):
            raise BadRequest("the message is not a ModelInferRequest") from None
        return parsed


def name_of(part: _Buffer) -> tuple[str, str]:
    """Name and version of the model, as far as the first bytes of a message show them.

    Example:
        >>> name_of(pb.ModelInferRequest(model_name="kep", model_version="2", id="x" * 99).SerializeToString()[:20])
        ('kep', '2')
    """
    found = {_NAME: b"", _VERSION: b""}
    view = memoryview(part)[:_NAME_BYTES]
    try:
        for number, _, begin, end in _fields(view):
            if number not in found:
                break
            found[number] = bytes(view[begin:end])
    except (DecodeError, IndexError):
        pass  # the message goes on
    return found[_NAME].decode(errors="replace"), found[_VERSION].decode(errors="replace")


def largest_message(contract: Contract) -> int:
    """Most bytes of an inference message that a model can need, in whichever form its tensors are sent."""
    total = _HEAD_BYTES
    for tensor in contract.inputs.values():
        count = math.prod(tensor.high)
        total += max(count * tensor.dtype.itemsize, min(count * _VALUE_BYTES, _CONTENTS_BYTES))
    return total


async def values(name: str, datatype: str, contents: _Buffer, turns: Turns) -> memoryview:
    """Convert the ``contents`` of an input to the bytes of its tensor.

    Args:
        name: name of the input, for messages.
        datatype: type of the input.
        contents: the bytes of an ``InferTensorContents``.
        turns: for the conversion, which may be long.

    Raises:
        BadRequest: the bytes are no such message, its type has no field there, a value does not fit the type, or the
            message is too long.

    Example:
        >>> import asyncio
        >>> from trtkp.serving.admission.turns import Turns
        >>> contents = pb.InferTensorContents(int_contents=[1, -2]).SerializeToString()
        >>> bytes(asyncio.run(values("x", "INT8", contents, Turns()))).hex()
        '01fe'
    """
    wanted = _CONTENTS.get(datatype)
    if wanted is None:
        raise BadRequest(f"input {name[:80]}: datatype {datatype[:40]} needs raw_input_contents")
    if datatype in _AS_THEY_LIE and (packed := _only_field(contents, wanted)) is not None:
        return packed
    if len(contents) > _CONTENTS_BYTES:
        raise BadRequest(f"input {name[:80]}: contents of more than {_CONTENTS_BYTES} bytes need raw_input_contents")
    async with turns:
        try:
            sent = getattr(pb.InferTensorContents.FromString(bytes(contents)), wanted)
        except DecodeError:
            raise BadRequest("the message is not a ModelInferRequest") from None
    dtype = DATATYPES[datatype]
    made = np.empty(len(sent), dtype)
    for start in range(0, len(sent), _SLICE):
        async with turns:
            part = np.array(sent[start : start + _SLICE], _WIDEST.get(dtype.kind))
            if dtype.kind in _WIDEST:
                limits = np.iinfo(dtype)
                if part.min() < limits.min or part.max() > limits.max:
                    raise BadRequest(f"input {name[:80]}: values outside {limits.min}..{limits.max} of {datatype}")
            made[start : start + _SLICE] = part
    return made.view(np.uint8).data


def encode(contract: Contract, request_id: str, outputs: Mapping[str, np.ndarray]) -> list[bytes | memoryview]:
    """Build a ``ModelInferResponse``, in parts; the tensors are views of the outputs."""
    head = pb.ModelInferResponse(model_name=contract.name, model_version=contract.version, id=request_id)
    parts: list[bytes | memoryview] = []
    for name, value in outputs.items():
        spec = contract.outputs[name]
        head.outputs.add(name=name, datatype=spec.datatype, shape=value.shape)
        raw = np.ascontiguousarray(value, spec.dtype).reshape(-1).view(np.uint8).data
        parts += (_tag(_RAW_OUTPUT, len(raw)), raw)
    return [head.SerializeToString(), *parts]


def as_stream_answer(answer: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    """Put a ``ModelInferResponse`` into a ``ModelStreamInferResponse``."""
    return [_tag(_STREAM_ANSWER, sum(map(len, answer))), *answer]


def _only_field(contents: _Buffer, name: str) -> memoryview | None:
    """The packed values of a field, if the message has no other and says so in one piece."""
    view = memoryview(contents)
    try:
        number, _, begin, end = next(_fields(view), (0, 0, 0, 0))
    except (DecodeError, IndexError):
        return None  # protobuf will say so
    wanted = pb.InferTensorContents.DESCRIPTOR.fields_by_name[name].number
    return view[begin:end] if number == wanted and end == len(view) else None


def _check_size(head: int, fields: int) -> None:
    if head > _HEAD_BYTES:
        raise BadRequest(f"names, shapes and parameters have more than {_HEAD_BYTES} bytes")
    if fields > _FIELDS:
        raise BadRequest(f"the message has more than {_FIELDS} fields")


def _fields(view: memoryview) -> Iterator[tuple[int, int, int, int]]:
    """Go through the fields of a message: number (0 if it is no text, bytes or message), start, begin of value, end."""
    position, size = 0, len(view)
    while position < size:
        start = position
        tag, position = _varint(view, position)
        kind = tag & 7
        begin = position
        if kind == _BYTES:
            length, begin = _varint(view, position)
            position = begin + length
        elif kind == _VARINT:
            _, position = _varint(view, position)
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            position += 8 if kind == _EIGHT_BYTES else 4
        else:
            raise DecodeError("a group, or no field at all")
        if position > size:
            raise DecodeError("cut short")
        yield (tag >> 3 if kind == _BYTES else 0), start, begin, position


def _varint(view: memoryview, position: int) -> tuple[int, int]:
    """Read a number of seven bits a byte; return it and the position behind it."""
    byte = view[position]
    if byte < 0x80:
        return byte, position + 1
    number, shift = byte & 0x7F, 7
    while shift < 70:
        position += 1
        byte = view[position]
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position + 1
        shift += 7
    raise DecodeError("a number of more than ten bytes")


def _tag(number: int, length: int) -> bytes:
    """The bytes before the content of a field."""
    head = bytearray([number << 3 | _BYTES])
    while length > 0x7F:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return bytes(head)

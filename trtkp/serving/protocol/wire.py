"""Encode and decode the bodies of HTTP inference requests: JSON, with or without the binary tensor extension.

The format is that of https://github.com/kserve/open-inference-protocol with its extension ``binary_tensor_data``. The
body begins with JSON, whose length is in the header ``Inference-Header-Content-Length``. The raw little-endian bytes of
every tensor with a ``binary_data_size`` follow, in the order of the JSON.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_json

from trtkp.serving.admission.memory import Account
from trtkp.serving.admission.turns import Turns
from trtkp.serving.contract import Contract, RawTensor
from trtkp.serving.errors import BadRequest
from trtkp.serving.models.service import Inference
from trtkp.serving.protocol.numbers import HEAD_BYTES, cut_arrays, read_numbers, write_numbers

__all__ = [
    "HEADER_LENGTH",
    "HttpInference",
    "decode",
    "decompress",
    "encode",
    "inflater_of",
    "largest_body",
    "refuse_parameters",
    "timeout_of",
]

HEADER_LENGTH = "Inference-Header-Content-Length"

#: Most bytes of a number in JSON, with what is around it: 25 of digits, and the indentation of pretty JSON.
_NUMBER_BYTES = 64
#: Bytes of JSON that are parsed without waiting for a turn: 0.2 ms.
_AT_ONCE = 1 << 13
#: Bytes that are decompressed at once: 0.5 ms.
_INFLATE = 1 << 18

#: Parameters of features that this server does not have. Ignoring them would give wrong answers, so they are refused.
_UNSUPPORTED = ("sequence_id", "sequence_start", "sequence_end", "shared_memory_region", "classification")

_Size = Annotated[int, Field(ge=0, lt=1 << 63)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class _Tensor(_Strict):
    name: str
    datatype: str
    shape: list[_Size]
    parameters: dict[str, Any] = {}
    data: Any = None


class _Output(_Strict):
    name: str
    parameters: dict[str, Any] = {}


class _Request(_Strict):
    id: str = ""
    parameters: dict[str, Any] = {}
    inputs: list[_Tensor]
    outputs: list[_Output] = []


@dataclass(frozen=True)
class HttpInference:
    """A decoded request, and which of its outputs are to be sent as binary data.

    Attributes:
        inference: the request.
        binary: names of the requested outputs to send as binary data.
        all_binary: whether to send all outputs as binary data, if the request names none.
    """

    inference: Inference
    binary: frozenset[str]
    all_binary: bool

    def is_binary(self, output: str) -> bool:
        """Whether this output is sent as binary data."""
        return self.all_binary if not self.inference.outputs else output in self.binary


def largest_body(contract: Contract) -> int:
    """Most bytes of a request that a model can need, in JSON or binary: each number may have 64 bytes of JSON."""
    count = sum(
        math.prod(tensor.high) * max(_NUMBER_BYTES, tensor.dtype.itemsize) for tensor in contract.inputs.values()
    )
    return HEAD_BYTES + count


async def decode(
    body: bytes | memoryview, header_length: str | None, contract: Contract, account: Account, turns: Turns
) -> HttpInference:
    """Decode the body of a request.

    Args:
        body: the body, decompressed.
        header_length: the header `HEADER_LENGTH`; None for a body of JSON only.
        contract: the inputs of the model.
        account: counts the bytes of tensors that are made.
        turns: of requests that need the event loop for longer.

    Raises:
        BadRequest: the body is not JSON, does not follow the protocol, or its binary parts do not add up.
        NoMemory: there is no room for the tensors.
    """
    length = _header_length(header_length, len(body))
    view = memoryview(body)
    arrays: Mapping[str, memoryview] = {}
    if length <= _AT_ONCE:
        request = _parse(bytes(view[:length]))
    else:
        head, arrays = (bytes(view[:length]), {}) if length <= HEAD_BYTES else await cut_arrays(view[:length], turns)
        async with turns:
            request = _parse(head)
    refuse_parameters(request.parameters)
    tensors = [
        await _read(tensor, arrays, contract, account, turns) for tensor in _tensors(request.inputs, view[length:])
    ]
    default = _flag(request.parameters, "binary_data_output", default=False)
    for output in request.outputs:
        refuse_parameters(output.parameters)
    binary = frozenset(
        output.name for output in request.outputs if _flag(output.parameters, "binary_data", default=default)
    )
    names = [output.name for output in request.outputs]
    inference = Inference(tensors, names, request.id, timeout_of(request.parameters.get("timeout")))
    return HttpInference(inference, binary, default)


async def encode(
    contract: Contract, request: HttpInference, outputs: Mapping[str, np.ndarray], account: Account, turns: Turns
) -> tuple[list[bytes | memoryview], dict[str, str]]:
    """Encode the outputs of a request.

    Returns:
        The parts of the body, and its HTTP headers. Binary tensors are views of the outputs.

    Raises:
        NoMemory: there is no room for the JSON.
    """
    start: dict[str, Any] = {"model_name": contract.name, "model_version": contract.version}
    if request.inference.id:
        start["id"] = request.inference.id
    head: list[bytes] = [to_json(start)[:-1], b',"outputs":[']
    tail: list[bytes | memoryview] = []
    for number, (name, value) in enumerate(outputs.items()):
        spec = contract.outputs[name]
        tensor: dict[str, Any] = {"name": name, "datatype": spec.datatype, "shape": list(value.shape)}
        binary = request.is_binary(name)
        if binary:
            raw = np.ascontiguousarray(value, spec.dtype).reshape(-1).view(np.uint8)
            tail.append(raw.data)
            tensor["parameters"] = {"binary_data_size": raw.nbytes}
        head += [b"," if number else b"", to_json(tensor)[:-1]]
        if not binary:
            head += [b',"data":', *await write_numbers(value, account, turns)]
        head.append(b"}")
    head.append(b"]}")
    if not tail:
        return [*head], {"Content-Type": "application/json"}
    return [*head, *tail], {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(sum(map(len, head)))}


async def decompress(part: bytes, inflater: zlib._Decompress, account: Account, turns: Turns) -> AsyncIterator[bytes]:
    """Decompress a piece of a body, in slices that are counted before the next is made.

    Args:
        part: the piece.
        inflater: `inflater_of` the body.
        account: counts the bytes that come out. A few could otherwise expand to gigabytes.
        turns: of requests that need the event loop for longer.

    Raises:
        BadRequest: the data is broken.
        NoMemory: there is no room for it.

    Example:
        >>> import asyncio
        >>> from trtkp.serving.admission.memory import Memory
        >>> from trtkp.serving.admission.turns import Turns
        >>> async def whole() -> list[bytes]:
        ...     account, turns = Memory(1 << 20).account("me"), Turns()
        ...     pieces = decompress(zlib.compress(b"{}"), inflater_of("deflate"), account, turns)
        ...     return [piece async for piece in pieces]
        >>> asyncio.run(whole())
        [b'{}']
    """
    while part and not inflater.eof:
        async with turns:
            try:
                plain = inflater.decompress(part, _INFLATE)
            except zlib.error:
                raise BadRequest("the body is not valid gzip or deflate") from None
            part = inflater.unconsumed_tail
            account.grow(len(plain))
            yield plain


def inflater_of(encoding: str) -> zlib._Decompress | None:
    """What undoes a ``Content-Encoding``, which is gzip or deflate; None if there is none.

    Raises:
        BadRequest: the encoding is unknown.
    """
    if encoding in ("", "identity"):
        return None
    if encoding not in ("gzip", "deflate"):
        raise BadRequest(f"Content-Encoding {encoding[:40]!r} is not supported; use gzip, deflate or none")
    return zlib.decompressobj(wbits=47)  # 32 to detect the header, gzip's or zlib's, plus 15 for any window size


def refuse_parameters(parameters: Mapping[str, Any]) -> None:
    """Refuse parameters of features that this server does not have.

    Raises:
        BadRequest: the request uses sequences, shared memory or classification.
    """
    for name in _UNSUPPORTED:
        if parameters.get(name):
            raise BadRequest(f"parameter {name} is not supported")


def timeout_of(value: Any) -> float | None:
    """Convert the protocol's parameter ``timeout`` from microseconds to seconds; None if it is not given or 0.

    Raises:
        BadRequest: it is not a number of microseconds.

    Example:
        >>> timeout_of(250_000)
        0.25
    """
    if value in (None, 0):
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise BadRequest("parameter timeout must be a number of microseconds")
    return min(value, 1 << 50) / 1e6  # at most 36 years: integers in JSON have no limit, but floats have


def _parse(head: bytes) -> _Request:
    try:
        return _Request.model_validate_json(head)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise BadRequest(": ".join(filter(None, [where, first["msg"]]))[:300]) from None


async def _read(
    raw: RawTensor, arrays: Mapping[str, memoryview], contract: Contract, account: Account, turns: Turns
) -> RawTensor:
    """Read the numbers of a tensor whose data was cut out."""
    array = arrays.get(raw.data) if isinstance(raw.data, str) else None
    if isinstance(raw.data, str) and array is None:
        raise BadRequest(f"input {raw.name[:80]} has neither data nor binary_data_size")
    spec = contract.inputs.get(raw.name)
    if array is None or spec is None:  # without one, `Contract.check` says so
        return raw if array is None else replace(raw, data=b"")
    shape = spec.check_form(raw.datatype, raw.shape)
    return replace(raw, data=await read_numbers(spec, shape, array, account, turns))


def _header_length(text: str | None, size: int) -> int:
    if text is None:
        return size
    if not (text.isascii() and text.isdecimal() and len(text) < 20) or int(text) > size:
        raise BadRequest(f"{HEADER_LENGTH} {text[:40]!r} is not a number within the body's {size} bytes")
    return int(text)


def _tensors(inputs: Sequence[_Tensor], tail: memoryview) -> list[RawTensor]:
    tensors, offset = [], 0
    for tensor in inputs:
        refuse_parameters(tensor.parameters)
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            if not isinstance(tensor.data, list | str):  # a text may stand for an array that was cut out
                raise BadRequest(f"input {tensor.name[:80]} has neither data nor binary_data_size")
            tensors.append(RawTensor(tensor.name, tensor.datatype, tensor.shape, tensor.data))
            continue
        if isinstance(size, bool) or not isinstance(size, int) or size < 0 or tensor.data is not None:
            raise BadRequest(f"input {tensor.name[:80]}: binary_data_size must be a number of bytes, without data")
        if offset + size > len(tail):
            raise BadRequest(f"input {tensor.name[:80]}: needs {size} bytes, but only {len(tail) - offset} are left")
        tensors.append(RawTensor(tensor.name, tensor.datatype, tensor.shape, tail[offset : offset + size]))
        offset += size
    if offset != len(tail):
        raise BadRequest(f"{len(tail)} bytes follow the JSON, but the inputs claim {offset}")
    return tensors


def _flag(parameters: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise BadRequest(f"parameter {name} must be true or false")
    return value

"""Encode and decode the bodies of HTTP inference requests: JSON, with or without the binary tensor extension.

The format is that of https://github.com/kserve/open-inference-protocol with its extension ``binary_tensor_data``. The
body begins with JSON, whose length is in the header ``Inference-Header-Content-Length``. The raw little-endian bytes of
every tensor with a ``binary_data_size`` follow, in the order of the JSON.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_json

from trtkp.serving.contract import Contract, RawTensor
from trtkp.serving.errors import BadRequest, TooLarge
from trtkp.serving.models.service import Inference

__all__ = ["HEADER_LENGTH", "HttpInference", "decode", "decompress", "encode", "refuse_parameters", "timeout_of"]

HEADER_LENGTH = "Inference-Header-Content-Length"

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


def decode(body: bytes, header_length: str | None) -> HttpInference:
    """Decode the body of a request.

    Args:
        body: the body, decompressed.
        header_length: the header `HEADER_LENGTH`; None for a body of JSON only.

    Raises:
        BadRequest: the body is not JSON, does not follow the protocol, or its binary parts do not add up.
    """
    length = _header_length(header_length, len(body))
    try:
        request = _Request.model_validate_json(body[:length])
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise BadRequest(": ".join(filter(None, [where, first["msg"]]))[:300]) from None
    refuse_parameters(request.parameters)
    tensors = _tensors(request.inputs, memoryview(body)[length:])
    default = _flag(request.parameters, "binary_data_output", default=False)
    for output in request.outputs:
        refuse_parameters(output.parameters)
    binary = frozenset(
        output.name for output in request.outputs if _flag(output.parameters, "binary_data", default=default)
    )
    names = [output.name for output in request.outputs]
    inference = Inference(tensors, names, request.id, timeout_of(request.parameters.get("timeout")))
    return HttpInference(inference, binary, default)


def encode(
    contract: Contract, request: HttpInference, outputs: Mapping[str, np.ndarray]
) -> tuple[bytes, dict[str, str]]:
    """Encode the outputs of a request.

    In JSON, NaN and infinities are written as ``NaN`` and ``Infinity``, which Python and JavaScript parsers of this
    protocol accept; strict JSON has no way to write them.

    Returns:
        The body, and its HTTP headers.
    """
    tensors, tail = [], []
    for name, value in outputs.items():
        spec = contract.outputs[name]
        tensor: dict[str, Any] = {"name": name, "datatype": spec.datatype, "shape": list(value.shape)}
        if request.is_binary(name):
            tail.append(value.astype(spec.dtype, copy=False).tobytes())
            tensor["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            tensor["data"] = value.ravel().tolist()
        tensors.append(tensor)
    document: dict[str, Any] = {"model_name": contract.name, "model_version": contract.version, "outputs": tensors}
    if request.inference.id:
        document["id"] = request.inference.id
    head = to_json(document, inf_nan_mode="constants")
    if not tail:
        return head, {"Content-Type": "application/json"}
    return b"".join([head, *tail]), {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))}


def decompress(body: bytes, encoding: str, limit: int) -> bytes:
    """Undo the ``Content-Encoding`` (gzip or deflate) of a body.

    Args:
        body: the body as received.
        encoding: the header ``Content-Encoding``; empty for none.
        limit: largest size in bytes after decompression. A few bytes could otherwise expand to gigabytes.

    Raises:
        BadRequest: the encoding is unknown, or the data is broken or incomplete.
        TooLarge: the decompressed body is larger than the limit.

    Example:
        >>> decompress(zlib.compress(b"{}"), "deflate", limit=1024)
        b'{}'
    """
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "deflate"):
        raise BadRequest(f"Content-Encoding {encoding[:40]!r} is not supported; use gzip, deflate or none")
    inflater = zlib.decompressobj(wbits=47)  # 32 to detect the header, gzip's or zlib's, plus 15 for any window size
    try:
        plain = inflater.decompress(body, limit + 1)
    except zlib.error:
        raise BadRequest(f"the body is not valid {encoding}") from None
    if len(plain) > limit:
        raise TooLarge(f"the decompressed body is larger than {limit} bytes")
    if not inflater.eof:
        raise BadRequest(f"the {encoding} body is cut short")
    return plain


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
            if not isinstance(tensor.data, list):
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

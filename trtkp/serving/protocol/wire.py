"""The HTTP form of an inference: JSON, with the binary tensor extension, both ways.

https://github.com/kserve/open-inference-protocol and its ``binary_tensor_data`` extension: the JSON comes first, its
length in the header ``Inference-Header-Content-Length``; behind it, in the order of the JSON, the raw little-endian
bytes of every tensor that has a ``binary_data_size``.
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

#: Request parameters that ask for what is not here; left alone they would be silently wrong.
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
    """A decoded request, and which outputs go back in binary."""

    inference: Inference
    binary: frozenset[str]
    all_binary: bool

    def is_binary(self, output: str) -> bool:
        """Whether this output goes back as bytes."""
        return self.all_binary if not self.inference.outputs else output in self.binary


def decode(body: bytes, header_length: str | None) -> HttpInference:
    """A request's body.

    Raises:
        BadRequest: not JSON, not the protocol's, or binary parts that do not add up.
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
    """A response's body and headers. Values that are no numbers are written as ``NaN`` and ``Infinity``."""
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
    """A body as it was before ``Content-Encoding`` (gzip, deflate).

    Raises:
        BadRequest: another encoding, or broken data.
        TooLarge: it grows beyond the limit.
    """
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "deflate"):
        raise BadRequest(f"Content-Encoding {encoding[:40]!r} is not understood; use gzip, deflate or none")
    inflater = zlib.decompressobj(wbits=47)  # either header
    try:
        plain = inflater.decompress(body, limit + 1)
    except zlib.error:
        raise BadRequest(f"the body is no valid {encoding}") from None
    if len(plain) > limit:
        raise TooLarge(f"the decompressed body is larger than {limit} bytes")
    if not inflater.eof:
        raise BadRequest(f"the {encoding} body is cut short")
    return plain


def refuse_parameters(parameters: Mapping[str, Any]) -> None:
    """Refuse what would be silently ignored.

    Raises:
        BadRequest: sequences, shared memory or classification are asked for.
    """
    for name in _UNSUPPORTED:
        if parameters.get(name):
            raise BadRequest(f"parameter {name} is not supported")


def timeout_of(value: Any) -> float | None:
    """Seconds of the protocol's parameter ``timeout``, microseconds; None: not given.

    Raises:
        BadRequest: not a number of microseconds.
    """
    if value in (None, 0):
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise BadRequest("parameter timeout must be a number of microseconds")
    return min(value, 1 << 50) / 1e6


def _header_length(text: str | None, size: int) -> int:
    if text is None:
        return size
    if not (text.isascii() and text.isdecimal() and len(text) < 20) or int(text) > size:
        raise BadRequest(f"{HEADER_LENGTH} {text[:40]!r} is not within the body's {size} bytes")
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
            raise BadRequest(f"input {tensor.name[:80]}: {len(tail) - offset} bytes are left for its {size}")
        tensors.append(RawTensor(tensor.name, tensor.datatype, tensor.shape, tail[offset : offset + size]))
        offset += size
    if offset != len(tail):
        raise BadRequest(f"{len(tail)} bytes follow the JSON, the inputs claim {offset}")
    return tensors


def _flag(parameters: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise BadRequest(f"parameter {name} must be true or false")
    return value

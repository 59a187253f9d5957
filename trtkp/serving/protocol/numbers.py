"""Arrays of numbers in JSON, read and written in slices that leave the event loop to others in between.

A JSON parser makes an object of every number and every pair of brackets: 64 MiB of ``[],`` became 5 GB and stopped the
server for half a minute. So long arrays are cut out of a body here, and their numbers go straight into a tensor.
"""

from __future__ import annotations

import math
import re
import secrets
from typing import TypeAlias

import numpy as np
from pydantic_core import from_json, to_json

from trtkp.serving.admission.memory import Account
from trtkp.serving.admission.turns import Turns
from trtkp.serving.contract import TensorContract
from trtkp.serving.errors import BadRequest
from trtkp.shapes import Shape

__all__ = ["HEAD_BYTES", "cut_arrays", "read_numbers", "write_numbers"]

#: Most bytes of JSON without long arrays: names, shapes, parameters. pydantic takes 2 ms for the worst of that size.
HEAD_BYTES = 1 << 16

#: Bytes of a slice in which the end of an array is looked for, and of one whose numbers are read: 2 ms.
_SCAN, _READ = 1 << 18, 1 << 15
#: Numbers that are written in a slice: 2 ms.
_WRITE = 1 << 14
#: Arrays of fewer bytes stay where they are: shapes.
_SHORT = 1 << 10

#: What does not begin an array: anything but a bracket, and texts.
_OTHER = re.compile(rb'(?:[^"\[]++|"(?:[^"\\]++|\\.)*+")*+', re.DOTALL)
#: Values with the brackets around them, up to a comma or the end. No number of a tensor is longer than 400 characters.
_VALUES = re.compile(rb"(?:[\s\[]*+[^\s\[\],]{1,400}+[\s\]]*+(?:,|\Z))*+")
#: Brackets and what is between them, up to a text or an object.
_PLAIN = re.compile(rb'[^"{}:]++')
_IS_OTHER = np.zeros(256, np.bool_)
_IS_OTHER[list(b'"{}:')] = True
_DEPTH = np.zeros(256, np.int8)
_DEPTH[ord("[")], _DEPTH[ord("]")] = 1, -1
_TO_SPACES = bytes.maketrans(b"[]", b"  ")
#: What stands for an array that was cut out. Nobody else can know it.
_MARK = secrets.token_hex(8)

_Places: TypeAlias = dict[str, memoryview]


async def cut_arrays(text: memoryview, turns: Turns) -> tuple[bytes, _Places]:
    """Cut all long arrays of plain values out of JSON.

    Args:
        text: the JSON.
        turns: of requests that need the event loop for longer.

    Returns:
        The rest, in which a text stands for each array, and the arrays by these texts.

    Raises:
        BadRequest: the rest is longer than `HEAD_BYTES`.

    Example:
        >>> import asyncio
        >>> from trtkp.serving.admission.turns import Turns
        >>> text = b'{"data": [' + b"1," * 1000 + b"1]}"
        >>> rest, arrays = asyncio.run(cut_arrays(memoryview(text), Turns()))
        >>> len(rest), [len(array) for array in arrays.values()]
        (30, [2003])
    """
    parts: list[bytes] = []
    places: _Places = {}
    left, position = HEAD_BYTES, 0
    while position < len(text):
        match = _OTHER.match(text, position, min(len(text), position + left + 1))
        assert match is not None  # it matches nothing at all, too
        stop = match.end()
        mark = b""
        begin = stop
        if stop < len(text) and text[stop] == ord("["):
            run = _PLAIN.match(text, stop, stop + _SHORT)
            assert run is not None  # the bracket
            stop = run.end()
            if stop - begin == _SHORT:
                stop = await _end_of_array(text, begin, turns)
                name = f"{_MARK}:{len(places)}"
                places[name] = text[begin:stop]
                mark = f'"{name}"'.encode()
        elif stop < len(text):  # a text that is too long, or never ends
            begin = stop = len(text)
        if not mark:
            begin = stop
        left -= begin - position + len(mark)
        if left < 0:
            raise BadRequest(f"more than {HEAD_BYTES} bytes of JSON besides arrays of numbers")
        parts += [bytes(text[position:begin]), mark]
        position = stop
    return b"".join(parts), places


async def read_numbers(
    spec: TensorContract, shape: Shape, text: memoryview, account: Account, turns: Turns
) -> memoryview:
    """Read the values of an input.

    Args:
        spec: the input.
        shape: the shape that the request gives, which fits the input.
        text: a JSON array, nested or flat.
        account: counts the bytes of the tensor.
        turns: of requests that need the event loop for longer.

    Returns:
        The bytes of the tensor.

    Raises:
        BadRequest: the array is ragged, has another number of values, or holds values that do not fit the input's type.
        NoMemory: there is no room for the tensor.
    """
    expected = math.prod(shape)
    account.grow(expected * (spec.dtype.itemsize + 1))
    made = np.empty(expected, spec.dtype)
    closing = np.zeros(expected, np.uint8)  # brackets that close behind each value
    position, count, last_open, depth = 1, 0, 0, 0
    end = len(text) - 1
    brackets = False
    while position < end:
        async with turns:
            piece = bytes(text[position : min(end, position + _READ)])
            if position + _READ < end:
                piece = piece[: piece.rfind(b",") + 1]
            position += len(piece)
            match = _VALUES.fullmatch(piece) if piece else None
            if match is None or (piece.endswith(b",") and position >= end):
                raise _ragged(spec)
            piece = piece.removesuffix(b",")
            opens, closes = _brackets(piece)
            values = _values(spec, piece)
            if count + len(values) > expected:
                raise _wrong_count(spec, shape, f"more than {expected}")
            if opens is not None and closes is not None:
                brackets = True
                # Between two values, as many close as open; the last value of the piece is compared in the next.
                opens[0] -= last_open
                if count == 0:
                    depth, opens[0] = int(opens[0]), 0
                if (opens[1:] != closes[:-1]).any() or opens[0] != 0 or closes.max() > 255:
                    raise _ragged(spec)
                closing[count : count + len(values)] = closes
                last_open = int(closes[-1])
            elif last_open != 0:
                raise _ragged(spec)
            made[count : count + len(values)] = values
            count += len(values)
    if count != expected:
        raise _wrong_count(spec, shape, str(count))
    if brackets:
        async with turns:
            _check_nesting(spec, closing, depth)
    account.shrink(expected)
    return made.view(np.uint8).data


async def write_numbers(array: np.ndarray, account: Account, turns: Turns) -> list[bytes]:
    """Write all values of an output as one flat JSON array, in parts.

    NaN and infinities are written as ``NaN`` and ``Infinity``, which Python and JavaScript parsers of this protocol
    accept; strict JSON has no way to write them.

    Raises:
        NoMemory: there is no room for it.

    Example:
        >>> import asyncio
        >>> from trtkp.serving.admission.memory import Memory
        >>> from trtkp.serving.admission.turns import Turns
        >>> async def write(array: np.ndarray) -> bytes:
        ...     return b"".join(await write_numbers(array, Memory(1 << 20).account("me"), Turns()))
        >>> asyncio.run(write(np.array([[1.5, np.nan], [np.inf, 0]])))
        b'[1.5,NaN,Infinity,0.0]'
    """
    flat = array.ravel()
    parts = [b"["]
    for start in range(0, len(flat), _WRITE):
        async with turns:
            part = to_json(flat[start : start + _WRITE].tolist(), inf_nan_mode="constants")[1:-1]
            account.grow(len(part))
            parts += [b",", part] if start else [part]
    return [*parts, b"]"]


async def _end_of_array(text: memoryview, start: int, turns: Turns) -> int:
    """Where the array ends that starts here."""
    depth = 0
    for position in range(start, len(text), _SCAN):
        async with turns:
            piece = np.frombuffer(text[position : position + _SCAN], np.uint8)
            others = np.flatnonzero(_IS_OTHER[piece])
            plain = piece[: others[0]] if len(others) else piece
            depths = depth + np.cumsum(_DEPTH[plain], dtype=np.int32)
            closed = np.flatnonzero(depths == 0)
            if len(closed):
                return position + int(closed[0]) + 1
            if len(others):
                break
            depth = int(depths[-1])
    raise BadRequest(
        "data is ragged or holds values that are not numbers: a long array has texts or objects, or no end"
    )


def _brackets(piece: bytes) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """How many brackets open before each value, and close behind it; None for both if there are none."""
    if b"[" not in piece and b"]" not in piece:
        return None, None
    data = np.frombuffer(piece, np.uint8)
    value = np.cumsum(data == ord(","))  # the number of the value that each byte belongs to
    size = int(value[-1]) + 1
    return tuple(np.bincount(value[data == ord(bracket)], minlength=size) for bracket in "[]")  # type: ignore[return-value]


def _values(spec: TensorContract, piece: bytes) -> np.ndarray:
    try:
        values = from_json(b"[" + piece.translate(_TO_SPACES) + b"]")
    except ValueError:
        raise _ragged(spec) from None
    types = set(map(type, values))
    kind = spec.dtype.kind
    if not types <= ({bool} if kind == "b" else {int} if kind in "iu" else {int, float}):
        raise _ragged(spec)
    if kind in "iu":
        limits = np.iinfo(spec.dtype)
        if min(values) < limits.min or max(values) > limits.max:
            raise BadRequest(f"input {spec.name}: values outside {limits.min}..{limits.max} of {spec.datatype}")
        return np.array(values, spec.dtype)
    if kind == "b":
        return np.array(values, np.bool_)
    try:
        with np.errstate(over="ignore"):  # JSON numbers are doubles; one beyond the range of FP32 becomes infinity
            return np.array(values, np.float64).astype(spec.dtype)
    except OverflowError:  # an integer beyond the doubles
        raise _ragged(spec) from None


def _check_nesting(spec: TensorContract, closing: np.ndarray, depth: int) -> None:
    """Check that lists of one level all have the same length: each level closes at multiples of one number."""
    closes = closing[:-1]  # the last value closes all
    if int(closing[-1]) != depth:
        raise _ragged(spec)
    outer = len(closing)
    inner = 1
    for level in range(1, depth + 1):
        ends = np.flatnonzero(closes >= level) + 1
        size = int(ends[0]) if len(ends) else outer
        if size % inner or outer % size or len(ends) != outer // size - 1 or (ends % size).any():
            raise _ragged(spec)
        inner = size
    if closes.max(initial=0) > depth:
        raise _ragged(spec)


def _ragged(spec: TensorContract) -> BadRequest:
    return BadRequest(f"input {spec.name}: data is ragged or holds values that are not {spec.datatype}")


def _wrong_count(spec: TensorContract, shape: Shape, got: str) -> BadRequest:
    return BadRequest(f"input {spec.name}: shape {list(shape)} needs {math.prod(shape)} values, got {got}")

"""Numbers of JSON in slices: the same values, refusals and texts as by a parser that sees all at once."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import pytest

from trtkp.serving.admission.memory import Memory
from trtkp.serving.admission.turns import Turns
from trtkp.serving.contract import TensorContract
from trtkp.serving.datatypes import DATATYPES
from trtkp.serving.errors import BadRequest
from trtkp.serving.protocol.numbers import HEAD_BYTES, cut_arrays, read_numbers, write_numbers

ROWS, WIDTH = 400, 100


def read(text: str, datatype: str = "FP32", shape: tuple[int, ...] = (ROWS, WIDTH)) -> np.ndarray:
    spec = TensorContract("x", datatype, shape, low=shape, high=shape)
    memory = Memory(1 << 30)
    with memory.account("me") as account:
        data = asyncio.run(read_numbers(spec, shape, memoryview(text.encode()), account, Turns()))
        assert account.held == len(data)
    return np.frombuffer(data, DATATYPES[datatype]).reshape(shape)


@pytest.mark.parametrize("datatype", ["FP32", "FP64", "INT64", "UINT64", "INT8", "BOOL", "FP16", "BF16"])
@pytest.mark.parametrize("form", ["flat", "nested", "indented", "deeper"])
def test_values_are_exact(datatype: str, form: str) -> None:
    dtype = DATATYPES[datatype]
    random = np.random.default_rng(0)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        values = random.integers(limits.min, limits.max, (ROWS, WIDTH), dtype, endpoint=True)
        values[0, :2] = limits.min, limits.max
    else:
        values = random.standard_normal((ROWS, WIDTH)).astype(dtype)
    if dtype.kind == "b":
        values = random.random((ROWS, WIDTH)) < 0.5
    nested = (values if dtype.kind in "iub" else values.astype(np.float64)).tolist()
    document: Any = {"flat": [value for row in nested for value in row], "deeper": [[[row] for row in nested]]}.get(
        form, nested
    )
    np.testing.assert_array_equal(
        read(json.dumps(document, indent=8 if form == "indented" else None), datatype), values
    )


def test_not_finite_numbers() -> None:
    assert (
        str(read("[NaN, Infinity, [-Infinity]]".replace("[-Infinity]", "-Infinity"), shape=(3,))) == "[ nan  inf -inf]"
    )


ROW = "[" + ",".join(["0.5"] * WIDTH) + "]"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" + "[]," * 50_000 + "[]]", "data is ragged or holds values that are not FP32"),
        ("[" * 100_000 + "]" * 100_000, "data is ragged"),
        ("[" + ",".join([ROW] * (ROWS - 1) + [ROW.replace("0.5", "null", 1)]) + "]", "data is ragged or holds values"),
        ("[" + ",".join([ROW] * (ROWS - 1) + [ROW.replace("0.5,", "", 1)]) + "]", "needs 40000 values, got 39999"),
        ("[" + ",".join([ROW] * ROWS + ["1"]) + "]", "needs 40000 values, got more than 40000"),
        ("[" + ",".join([ROW] * (ROWS - 1) + [ROW[1:-1]]) + "]", "data is ragged"),
        ("[" + ",".join([ROW] * (ROWS - 1) + ["[" + ROW + "]"]) + "]", "data is ragged"),
        ("[" + ROW.replace(",", "],[", 1) + "," + ",".join([ROW] * (ROWS - 1)) + "]", "data is ragged"),
        ("[" + ",".join([ROW] * ROWS) + ",]", "data is ragged"),
        ("[" + ",".join([ROW] * ROWS).replace("0.5", "0.5 0.5", 1) + "]", "data is ragged"),
        ("[" + ",".join([ROW] * ROWS).replace("0.5", "1_0", 1) + "]", "data is ragged"),
        ("[" + "1" * 100_000 + "]", "data is ragged"),
        ("[" + ",".join([ROW] * ROWS).replace("[0.5", "]0.5[", 1) + "]", "data is ragged"),
    ],
)  # fmt: skip
def test_refusals(text: str, words: str) -> None:
    with pytest.raises(BadRequest, match="input x: ") as caught:
        read(text)
    assert words in str(caught.value)


def test_integers_have_limits() -> None:
    for text in ("256", "-1"):
        with pytest.raises(BadRequest, match=r"values outside 0\.\.255 of UINT8"):
            read(f"[{text}]", "UINT8", (1,))
    for text in ("1.0", "true", "1e3"):
        with pytest.raises(BadRequest, match="holds values that are not INT64"):
            read(f"[{text}]", "INT64", (1,))


def cut(text: bytes) -> tuple[bytes, list[bytes]]:
    rest, arrays = asyncio.run(cut_arrays(memoryview(text), Turns()))
    return rest, [bytes(array) for array in arrays.values()]


def test_only_long_arrays_of_values_are_cut_out() -> None:
    array = b"[" + b"[1, 2], " * 100_000 + b"[3, 4]]"
    text = b'{"id": "a [quoted\\"] text", "shape": [1, 2], "data": ' + array + b', "more": [{"data": ' + array + b"}]}"
    rest, arrays = cut(text)
    assert arrays == [array, array]
    parsed = json.loads(rest)
    assert (parsed["id"], parsed["shape"]) == ('a [quoted"] text', [1, 2])
    assert len({parsed["data"], parsed["more"][0]["data"]}) == 2


@pytest.mark.parametrize(
    "text",
    [
        b'{"id": "' + b"a" * HEAD_BYTES + b'"}',
        b"{" + b'"a": 1, ' * 20_000 + b"}",
        b"[" + b"{}," * 100_000 + b"{}]",
        b"[" + b"[[1], {}]," * 100_000 + b"1]",
        b"[" + b"[1], " * 100_000 + b'"text"]',
        b"[" * 200_000,
        b" " * 200_000,
    ],
)  # fmt: skip
def test_what_is_left_is_small(text: bytes) -> None:
    with pytest.raises(BadRequest, match=r"bytes of JSON besides arrays of numbers|a long array has texts"):
        cut(text)


def test_answers_are_written_in_slices() -> None:
    values = np.random.default_rng(0).standard_normal((300, 200))
    values[0, :3] = np.nan, np.inf, -np.inf
    memory = Memory(1 << 24)
    with memory.account("me") as account:
        parts = asyncio.run(write_numbers(values, account, Turns()))
        assert account.held > 60_000 * 15
    np.testing.assert_array_equal(json.loads(b"".join(parts)), values.ravel())
    assert max(map(len, parts)) < 1 << 19

"""The plugins under AddressSanitizer and UBSan, in TensorRT's calling order, over emulated kernels."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.emulation.cases import BASES, TOLERANCE
from tests.emulation.programs import run
from tests.emulation.test_kernels import compare
from trtkp.graph.ops import ACTIVATIONS, DYNAMIC, OpName

from .cases import CHAR, INT8, INT32, Field, Layer, dynamic_layer, listed_layer

FORMATS = {"float32": (0, 8), "float16": (1, 2), "bfloat16": (7, 2)}
VERSIONS = (100001, 101600, 110000, 110100)


def play(layer: Layer, program: Path, folder: Path, command: str = "run") -> str:
    """What plugin_host prints."""
    layer.write(folder / "case")
    done = run(program, command, folder / "case", folder / "y")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "ERROR" not in done.stderr
    return done.stdout


def lines(output: str, start: str) -> list[str]:
    """The rest of the lines that start so."""
    return [line[len(start) + 1 :] for line in output.splitlines() if line.startswith(f"{start} ")]


def check(layer: Layer, want: Any, program: Path, folder: Path) -> str:
    """Every tactic computes the layer, and padded channels of Y are 0 where those of X are NaN."""
    output = play(layer, program, folder)
    assert [line for line in lines(output, "log") if not line.startswith("4 ")] == []
    type_, format_ = FORMATS[layer.dtype]
    forms = [tuple(map(int, line.split())) for line in lines(output, "form")]
    for array, form in zip(layer.inputs, forms[:-1], strict=True):
        assert form == ((type_, format_) if array.ndim == 4 else (3, 0) if array.dtype == np.int32 else (type_, 0))
    assert forms[-1] == (type_, format_)
    tactics = lines(output, "tactic")
    assert len(tactics) >= 2  # one that is offered, and the default
    for tactic in tactics:
        compare(*layer.read(folder / f"y.{tactic}"), want, TOLERANCE.get(layer.dtype, 2e-6))
    return output


@pytest.mark.parametrize("number", range(12))
def test_lists(number: int, plugin_host: Path, oracle: Any, tmp_path: Path) -> None:
    dtype = ("float16", "bfloat16", "float32")[number // 3 % 3]
    layer, case = listed_layer(number, base=BASES[number % 3], dtype=dtype, blocks=number % 2 == 0)
    output = check(layer, case.want(oracle), plugin_host, tmp_path)
    assert lines(output, "tactic") == [*lines(output, "offered"), "0"]


@pytest.mark.parametrize("number", range(6))
def test_two_four(number: int, plugin_host: Path, oracle: Any, tmp_path: Path) -> None:
    dtype = ("float16", "bfloat16")[number // 3]
    layer, case = listed_layer(100 + number, base=BASES[number % 3], dtype=dtype, blocks=number % 2 == 0, two_four=True)
    check(layer, case.want(oracle), plugin_host, tmp_path)


@pytest.mark.parametrize("number", range(6))
def test_dynamic_pattern(number: int, plugin_host: Path, oracle: Any, tmp_path: Path) -> None:
    dtype = ("float16", "bfloat16", "float32")[number % 3]
    layer, case = dynamic_layer(number, dtype=dtype, whole=number % 2 == 0)
    output = check(layer, case.want(oracle), plugin_host, tmp_path)
    assert int(lines(output, "workspace")[0]) > 0


def test_more_is_offered_for_lists_in_blocks(plugin_host: Path, tmp_path: Path) -> None:
    layer, case = listed_layer(0, base="KernelIndexConv", dtype="float16", blocks=True)
    assert case.block == 8
    layer = replace(layer, lines=("spoil stop",))
    with_blocks = set(lines(play(layer, plugin_host, tmp_path), "offered"))
    no_blocks = changed(layer, "list_block", Field.of("list_block", [1]))
    assert set(lines(play(no_blocks, plugin_host, tmp_path), "offered")) < with_blocks


@pytest.mark.parametrize("least", [0, 1])
def test_batches_of_a_profile(least: int, plugin_host: Path, oracle: Any, tmp_path: Path) -> None:
    layer, case = listed_layer(4, base="StripeConv", dtype="float16", blocks=True)
    check(replace(layer, lines=(f"least {least}",)), case.want(oracle), plugin_host, tmp_path)


def test_timing_cache_id_tells_layers_and_libraries_apart(plugin_host: Path, tmp_path: Path) -> None:
    seen = set()
    for seed, base in ((0, "StripeConv"), (0, "KernelIndexConv"), (2, "StripeConv")):
        layer, _ = listed_layer(seed, base=base, dtype="float16", blocks=True)
        (timing,) = lines(play(replace(layer, lines=("spoil stop",)), plugin_host, tmp_path), "timing")
        assert timing.startswith(f"{layer.op} strides=")
        assert re.search(r" library=([0-9a-f]{40}|unknown)$", timing)
        seen.add(timing)
    assert len(seen) == 3


@pytest.fixture(scope="session")
def good() -> Layer:
    """A layer to spoil: LeakyRelu, so that every field is there."""
    return next(
        layer
        for seed in range(100)
        if (layer := listed_layer(seed, base="StripeConv", dtype="float16", blocks=True)[0]).op.endswith("LeakyRelu")
    )


def changed(layer: Layer, name: str, field: Field | None) -> Layer:
    """With another field of that name, or without it."""
    rest = tuple(f for f in layer.fields if f.name != name)
    return replace(layer, fields=rest if field is None else (*rest, field))


REQUIRED = ("strides", "pads", "dilations", "weight_shape", "group", "alpha")


@pytest.mark.parametrize("version", VERSIONS)
def test_messages_go_to_the_logger_of_either_layout(
    version: int, good: Layer, plugin_host: Path, tmp_path: Path
) -> None:
    spoilt = replace(changed(good, "pads", None), lines=(f"version {version}",))
    output = play(spoilt, plugin_host, tmp_path, "create").splitlines()
    message = f"[trtkp] {good.op} node: field pads is missing"
    assert output == [f"log 1 {message}", f"recorded 3 {message.removeprefix('[trtkp] ')}", "refused"]
    with_finder = replace(spoilt, lines=(f"version {version}", "spoil finder"))
    output = play(with_finder, plugin_host, tmp_path, "create").splitlines()
    assert output[0] == f"finder {10 if version < 110000 else 11}"
    assert output[1] == f"log 1 {message}"


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_field_is_refused(name: str, good: Layer, plugin_host: Path, tmp_path: Path) -> None:
    output = play(changed(good, name, None), plugin_host, tmp_path, "create")
    assert output.endswith("refused\n")
    assert f"field {name} is missing" in output


def test_list_block_may_be_missing(good: Layer, plugin_host: Path, tmp_path: Path) -> None:
    output = play(changed(good, "list_block", None), plugin_host, tmp_path, "create")
    assert output.endswith(f" list_block=1 alpha={0.2:g}\ncreated\n")


@pytest.mark.parametrize(
    ("name", "field", "message"),
    [
        ("strides", Field("strides", INT8, 2, b"\1\1"), "field strides is of type int8, not int32"),
        ("strides", Field("strides", 99, 2, b"\1\1"), "field strides is of type another type, not int32"),
        ("alpha", Field("alpha", INT32, 1, bytes(4)), "field alpha is of type int32, not float32"),
        ("pads", Field.of("pads", [1, 1]), "field pads has 2 values, not 4"),
        ("pads", Field("pads", INT32, -1, b""), "field pads has -1 values, not 4"),
        ("pads", Field("pads", INT32, 4, None), "field pads has no data"),
        ("strides", Field.of("strides", [0, 1]), "strideH is 0"),
        ("strides", Field.of("strides", [1, 1 << 30]), "strideW is 1073741824"),
        ("pads", Field.of("pads", [0, -1, 0, 0]), "padLeft is -1"),
        ("dilations", Field.of("dilations", [1, 0]), "dilation"),
        ("dilations", Field.of("dilations", [2**31 - 1, 1]), "is"),
        ("group", Field.of("group", [0]), "group is 0, not positive"),
        ("group", Field.of("group", [2**31 - 1]), "is"),
        ("weight_shape", Field.of("weight_shape", [8, 8, 9, 9]), "kernelRows * kernelColumns is 81"),
        ("weight_shape", Field.of("weight_shape", [8, 70000, 1, 1]), "channels is 70000"),
        ("weight_shape", Field.of("weight_shape", [8, 0, 3, 3]), "weight_shape is [8, 0, 3, 3], not of positive sizes"),
        ("weight_shape", Field.of("weight_shape", [2**31 - 1] * 4), "is"),
        ("list_block", Field.of("list_block", [4]), "list_block is 4, not 1 or 8"),
        ("alpha", Field.of("alpha", float("nan")), "alpha is nan"),
        ("alpha", Field.of("alpha", float("inf")), "alpha is inf"),
        ("what", Field.of("what", [1]), "field what is not known"),
        ("format_version", Field.of("format_version", [1]), "field format_version is not known"),
    ],
)  # fmt: skip
def test_a_bad_field_is_refused(
    name: str, field: Field, message: str, good: Layer, plugin_host: Path, tmp_path: Path
) -> None:
    output = play(changed(good, name, field), plugin_host, tmp_path, "create")
    assert output.endswith("refused\n")
    assert message in output


def test_a_field_given_twice_is_refused(good: Layer, plugin_host: Path, tmp_path: Path) -> None:
    twice = replace(good, fields=(*good.fields, Field.of("group", [1])))
    assert "field group is given twice" in play(twice, plugin_host, tmp_path, "create")


def test_no_fields_at_all(good: Layer, plugin_host: Path, tmp_path: Path) -> None:
    output = play(replace(good, lines=("spoil collection",)), plugin_host, tmp_path, "create")
    assert "there is no field collection" in output
    assert "is missing" in play(replace(good, fields=()), plugin_host, tmp_path, "create")


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (None, "field format_version is missing"),
        (Field.of("format_version", [3]), "format_version is 3, this library reads 1 to 2: build the engine anew"),
        (Field.of("format_version", [0]), "format_version is 0, this library reads 1 to 2: build the engine anew"),
        (Field("format_version", CHAR, 1, b"1"), "field format_version is of type char, not int32"),
        (Field.of("format_version", [1]), None),
        (Field.of("format_version", [2]), None),
    ],
)
def test_an_engine_has_a_format_version(
    field: Field | None, message: str | None, good: Layer, plugin_host: Path, tmp_path: Path
) -> None:
    engine = replace(changed(good, "format_version", field), lines=("phase 1",))
    output = play(engine, plugin_host, tmp_path, "create")
    assert output.endswith("created\n" if message is None else "refused\n")
    assert (message or "") in output


def test_a_phase_that_is_none(good: Layer, plugin_host: Path, tmp_path: Path) -> None:
    assert "phase 7 is none" in play(replace(good, lines=("phase 7",)), plugin_host, tmp_path, "create")


@pytest.mark.parametrize(
    ("spoil", "messages"),
    [
        ("weight", ["configurePlugin: weight has shape ["]),
        ("tactic", ["setTactic: tactic 1000 is none", "setTactic: tactic -1 is none"]),
        ("bias", ["onShapeChange: bias has shape ["]),
    ],
)
def test_a_call_that_is_wrong_is_refused(
    spoil: str, messages: list[str], good: Layer, plugin_host: Path, tmp_path: Path
) -> None:
    output = play(replace(good, lines=(f"spoil {spoil}",)), plugin_host, tmp_path)
    for message in messages:
        assert f"log 1 [trtkp] {good.op} {message}" in output
        assert f"recorded 3 {good.op} {message}" in output


@pytest.mark.parametrize("version", VERSIONS)
def test_registration(version: int, good: Layer, plugin_host: Path, tmp_path: Path) -> None:
    """Every operator of the table is registered once, with its fields, in either layout of the registry."""
    output = play(replace(good, lines=(f"version {version}",)), plugin_host, tmp_path, "register")
    creators = dict(line.split(":") for line in lines(output, "creator"))
    count = len(creators)
    assert output.splitlines()[:2] == [f"registries 1, creators {count}, refused 0"] * 2
    forms = [*((base, two_four) for base in BASES for two_four in (False, True)), (DYNAMIC, False)]
    names = {
        str(OpName(base, residual, activation, two_four))
        for base, two_four in forms
        for residual in (False, True)
        for activation in ACTIVATIONS
    }
    assert set(creators) == names
    common = "strides/5/2 pads/5/4 dilations/5/2 weight_shape/5/4"
    assert creators["StripeConvRelu"].strip() == f"{common} group/5/1 list_block/5/1 tactic/6/0"
    assert creators["PatternConv24AddLeakyRelu"].strip() == f"{common} group/5/1 list_block/5/1 alpha/1/1 tactic/6/0"
    assert creators["DynamicPatternConv"].strip() == f"{common} channels/5/1 tactic/6/0"


def test_plugins_are_not_registered_with_tensorrt_rtx(good: Layer, plugin_host: Path, tmp_path: Path) -> None:
    output = play(replace(good, lines=("version 10701",)), plugin_host, tmp_path, "register")
    assert lines(output, "creator") == []
    assert "log 2 [trtkp] plugins are not registered with TensorRT-RTX" in output

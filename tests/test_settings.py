"""Settings: what is read of their declarations, which values are refused, and what files may hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from trtkp.errors import InputError
from trtkp.settings import Setting, check, check_values, describe, from_mapping, nested_settings, settings_of


@dataclass(frozen=True)
class Inner:
    share: Annotated[float, Setting("A share.", ge=0, lt=1)] = 0.5
    steps: Annotated[tuple[int, ...], Setting("Steps.", ge=1)] = ()
    kind: Annotated[str, Setting("A kind.", choices=("a", "b", "c"))] = "a"

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Outer:
    name: Annotated[str | None, Setting("A name.", command_line=False)] = None
    path: Annotated[str | PathLike[str] | None, Setting("A path.")] = None
    level: Annotated[int | None, Setting("A level.", ge=0, le=5, flag="--effort", default="the usual")] = None
    mode: Annotated[Literal["x", "y"], Setting("A mode.")] = "x"
    names: Annotated[Sequence[str], Setting("Names.")] = ()
    on: Annotated[bool, Setting("A switch.")] = True
    inner: Inner = field(default_factory=Inner)
    hidden: int = 0

    def __post_init__(self) -> None:
        check(self)


def function(path: str, *, runs: Annotated[int, Setting("Runs.", ge=1)] = 10, other: int = 0) -> None:
    """A function whose keyword is a setting."""


def test_what_is_declared_is_read() -> None:
    assert list(settings_of(Outer)) == ["name", "path", "level", "mode", "names", "on"]
    assert nested_settings(Outer) == {"inner": Inner}
    level = settings_of(Outer)["level"]
    assert (level.flag, level.plain, level.default, level.default_text) == ("--effort", int, None, "the usual")
    assert list(settings_of(function)) == ["runs"]
    assert settings_of(function)["runs"].default == 10
    assert settings_of(dict) == {}


def test_descriptions_are_texts() -> None:
    found = {item.name: item for item in describe(Outer)}
    assert list(found) == ["name", "path", "level", "mode", "names", "on", "share", "steps", "kind"]
    assert found["name"].flag is None
    assert (found["level"].flag, found["level"].type, found["level"].bounds) == ("--effort", "whole number", "0 to 5")
    assert (found["path"].type, found["mode"].type, found["names"].type) == ("path", "x or y", "text, repeatable")
    assert (found["on"].default, found["share"].default, found["share"].owner) == ("on", "0.5", "Inner")


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ({}, ""),
        ({"ge": 1}, "1 or more"),
        ({"gt": 0}, "more than 0"),
        ({"ge": 0, "le": 5}, "0 to 5"),
        ({"ge": 0, "lt": 1}, "0 to below 1"),
        ({"gt": 0, "le": 100}, "more than 0 and at most 100"),
        ({"gt": 0, "lt": 1}, "more than 0 and below 1"),
    ],
)
def test_bounds_in_words(bounds: dict[str, float], words: str) -> None:
    assert Setting("It.", **bounds).bounds == words  # type: ignore[arg-type]  # numbers, all of them


@pytest.mark.parametrize(
    ("owner", "values", "message"),
    [
        (Inner, {"share": 1}, "--share 1: out of range; give 0 to below 1"),
        (Inner, {"share": float("nan")}, "--share nan: out of range; give 0 to below 1"),
        (Inner, {"share": "1"}, "setting share: '1' is of the wrong type; give a number"),
        (Inner, {"share": True}, "setting share: True is of the wrong type; give a number"),
        (Inner, {"steps": (3, 0)}, "--steps 3,0: out of range; give 1 or more"),
        (Inner, {"steps": 3}, "setting steps: 3 is of the wrong type; give a list of numbers"),
        (Inner, {"kind": "d"}, "--kind d: not known; use one of a, b, c"),
        (Outer, {"level": 6}, "--effort 6: out of range; give 0 to 5"),
        (Outer, {"level": 2.0}, "setting level: 2.0 is of the wrong type; give a whole number"),
        (Outer, {"mode": "z"}, "--mode z: not known; use x or y"),
        (Outer, {"names": "one"}, "setting names: 'one' is of the wrong type; give a list of names"),
        (Outer, {"path": 3}, "setting path: 3 is of the wrong type; give a name or a path"),
        (Outer, {"hidden": "1"}, "setting hidden: '1' is of the wrong type; give a whole number"),
        (Outer, {"inner": 3}, "setting inner: 3 is of the wrong type; give Inner"),
        (function, {"runs": 0}, "--runs 0: out of range; give 1 or more"),
    ],
)
def test_bad_values(owner: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        check_values(owner, values)
    assert str(error.value) == message
    if isinstance(owner, type):
        with pytest.raises(InputError) as error:
            owner(**values)
        assert str(error.value) == message


def test_good_values() -> None:
    outer = Outer(path=Path("x"), level=0, names=["a"], inner=Inner(share=0, steps=[1, 2]))  # type: ignore[arg-type]
    assert outer.inner.share == 0


def test_a_mapping_becomes_an_instance() -> None:
    made = from_mapping(Outer, {"name": "n", "names": ["a"], "inner": {"share": "1e-4", "steps": 3}}, "the file")
    assert made == Outer(name="n", names=("a",), inner=Inner(share=1e-4, steps=(3,)))
    assert from_mapping(Inner, {"share": 0}, "inner").share == 0.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([1], "the file is no mapping of names"),
        ({1: 2}, "the file is no mapping of names"),
        ({"nothing": 1}, "the file: nothing is not known; use hidden, inner, level, mode, name, names, on, path"),
        ({"inner": 3}, "inner is no mapping of names"),
        ({"inner": {"share": 2}}, "inner.share 2: out of range; give 0 to below 1"),
        ({"inner": {"share": "much"}}, "setting inner.share: 'much' is of the wrong type; give a number"),
        ({"inner": {"share": None}}, "setting inner.share: nothing is given; give a number"),
        ({"inner": {"steps": [1, "a"]}}, "setting inner.steps: (1, 'a') is of the wrong type; give a list of numbers"),
        ({"on": 1}, "setting on: 1 is of the wrong type; give true or false"),
        ({"mode": "z"}, "mode z: not known; use x or y"),
    ],
)
def test_bad_mappings(given: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        from_mapping(Outer, given, "the file")
    assert str(error.value) == message

"""Settings of the methods have the types of their fields, wherever they come from."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trtkp.errors import InputError
from trtkp.pruning.methods.registry import METHODS, make_method


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("soks", {"groups": 2.5}, "setting groups: 2.5 is of the wrong type; give a whole number"),
        ("vskp", {"filter_group": "8"}, "setting filter_group: '8' is of the wrong type; give a whole number"),
        ("l1", {"ratio": True}, "setting ratio: True is of the wrong type; give a number"),
        ("kep", {"ratio": [0.5]}, "setting ratio: [0.5] is of the wrong type; give a number"),
        ("kep", {"norm": "l3"}, "--norm l3: not known; use l1 or l2"),
        ("kep", {"refresh": 1}, "setting refresh: 1 is of the wrong type; give true or false"),
        ("dppnet", {"alpha": "much"}, "setting alpha: 'much' is of the wrong type; give a number"),
        ("pptkp", {"quantiles": 0.5}, "setting quantiles: 0.5 is of the wrong type; give a list of numbers"),
        ("pptkp", {"intensities": ["a"]}, "setting intensities: ['a'] is of the wrong type; give a list of numbers"),
        ("kep", {"ratio": np.float32(0.5)}, "setting ratio: np.float32(0.5) is of the wrong type; give a number"),
        ("kep", {"ratio": Fraction(1, 2)}, "setting ratio: Fraction(1, 2) is of the wrong type; give a number"),
        ("channels", {"allocation": {"a": 1}}, "setting allocation: {'a': 1} is of the wrong type; give a name"),
    ],
)
def test_a_value_of_another_type_is_refused(method: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        make_method(method, **settings)
    assert str(error.value) == message


def test_a_long_value_is_named_in_short() -> None:
    with pytest.raises(InputError, match="setting n: ") as error:
        make_method("kep", n=list(range(1000)))
    assert len(str(error.value)) < 100


@pytest.mark.parametrize(
    ("settings", "own", "message"),
    [
        ({"alpha": "1"}, {}, "setting alpha: '1' is of the wrong type; give a number"),
        ({"beat": 1}, {}, "--beat is a setting of no method; leave it out"),
        ({"allocation": "global"}, {}, "the setting allocation does not work in an allocation file; leave it out"),
        ({}, {"filter_group": "8"}, "not an allocation: layers.a.filter_group: Input should be a valid integer"),
        ({}, {"filter_group": 8.0}, "not an allocation: layers.a.filter_group: Input should be a valid integer"),
        ({}, {"ratio": False}, "not an allocation: layers.a.ratio: Input should be a valid number"),
    ],
)
def test_nor_does_an_allocation_file_hold_one(
    settings: dict[str, Any], own: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"method": "vskp", "settings": settings, "layers": {"a": {"ratio": 0.5, **own}}}))
    with pytest.raises(InputError) as error:
        make_method("vskp", allocation=path)
    assert str(error.value).startswith(f"{path}: {message}")


def test_what_is_written_down_is_taken_again() -> None:
    """Lists, whole numbers for numbers, and settings left out: what a record in JSON has."""
    for name in METHODS:
        settings = json.loads(json.dumps(make_method(name).settings()))
        if name == "kep":
            settings["ratio"] = None
        assert make_method(name, **settings).settings() == settings
    assert make_method("vskp", ratio=0, alpha=1).settings()["ratio"] == 0

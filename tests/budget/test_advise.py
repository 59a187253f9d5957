"""Advice: it follows the clock, says why where it has none, and goes to a file and back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.models import write_classifier
from trtkp.budget.advise import DENSITIES, Advice, Granularity, LayerAdvice, Option, advise
from trtkp.budget.advise import _recommended as recommended
from trtkp.budget.options import AdviceOptions
from trtkp.errors import InputError
from trtkp.machine.timing import Timing
from trtkp.plan import race as race_module

Clock = Callable[[str], float]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[Clock], list[list[str]]]:
    """Replaces the clock by a function of what runs; every lowering has run once."""

    def install(time_of: Clock) -> list[list[str]]:
        races: list[list[str]] = []

        def fake(calls: Mapping[str, Callable[[], object]], **_: Any) -> dict[str, Timing]:
            for call in calls.values():
                call()
            races.append(list(calls))
            return {name: Timing(time_of(name), time_of(name), time_of(name), 1) for name in calls}

        monkeypatch.setattr(race_module, "time_interleaved", fake)
        return races

    return install


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_classifier(tmp_path / "net.onnx", (3, 32, 64, 64, 64))


def by_kind(name: str) -> float:
    """Kernels of one list for the layer take half the time, all else the dense time."""
    return 1.0 if "kind='kernel' filter_group=64" in name else 2.0


def advice_on(model: Path, **options: Any) -> Advice:
    return advise(model, AdviceOptions(timing_cache=False, **options))


def test_follows_the_clock(clock: Any, model: Path) -> None:
    races = clock(by_kind)
    steps: list[tuple[str, int, int]] = []
    advice = advise(model, AdviceOptions(timing_cache=False, batch=3), lambda *step: steps.append(step))
    assert list(advice.layers) == ["w1", "w2", "w3"]
    assert advice.left_out == {"w0": "stem"}
    assert (advice.batch, advice.backend) == (3, "onnxruntime")
    layer = advice.layers["w2"]
    assert layer.dense_ms == 2.0
    assert layer.shape == (64, 64, 3, 3)
    assert layer.share == pytest.approx(1 / 3, abs=1e-3)
    assert layer.recommended == Granularity(kind="kernel", filter_group=64)
    for option in layer.options:
        packed = option.granularity == layer.recommended and option.lowering != "dense"
        assert option.speed_up == (2.0 if packed else 1.0)
    assert {option.granularity.filter_group for option in layer.options} == {64, 32, 16}
    assert len(races) == 2  # w2 and w3 are alike
    assert advice.layers["w3"] == layer
    assert steps[-1] == ("Timing layers", 2, 2)


def test_densities_come_near_to_what_was_asked(clock: Any, model: Path) -> None:
    clock(by_kind)
    for option in advice_on(model).layers["w2"].options:
        assert option.wanted in DENSITIES
        assert option.density == pytest.approx(option.wanted, abs=0.13)


def test_nothing_pays(clock: Any, model: Path) -> None:
    clock(lambda name: 2.0)
    layer = advice_on(model).layers["w1"]
    assert layer.recommended is None
    assert layer.reason == "no granularity gains 1.1 at any density"
    assert {(option.speed_up, option.lowering) for option in layer.options} == {(1.0, "dense")}


def test_time_is_up(clock: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trtkp.budget import advise as module

    clock(by_kind)
    now = iter(np.arange(0.0, 1000.0, 10.0))
    monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(now)))
    advice = advice_on(model, seconds=15.0)
    # most work first: w2 and w3 are one geometry
    assert advice.layers["w2"].reason is None
    assert advice.layers["w1"].reason == "not timed: give a larger --seconds"
    assert advice.layers["w1"].share is None


def test_finest_that_gains_nearly_as_much() -> None:
    def option(filter_group: int, *gains: float) -> list[Option]:
        granularity = Granularity(kind="kernel", filter_group=filter_group)
        return [
            Option(granularity=granularity, density=0.5, wanted=0.5, speed_up=gain, lowering="gather") for gain in gains
        ]

    assert recommended([*option(64, 1.5, 3.0), *option(32, 1.4, 2.9), *option(16, 1.0, 2.0)]).filter_group == 32  # type: ignore[union-attr]
    assert recommended([*option(64, 1.5), *option(32, 1.05)]).filter_group == 64  # type: ignore[union-attr]
    assert recommended(option(64, 1.05, 1.0)) is None


def test_to_a_file_and_back(clock: Any, model: Path, tmp_path: Path) -> None:
    clock(by_kind)
    advice = advice_on(model)
    file = tmp_path / "advice.json"
    file.write_text(advice.model_dump_json())
    assert Advice.read(file) == advice
    for content in ("", "[]", json.dumps({**json.loads(file.read_text()), "version": 2})):
        file.write_text(content)
        with pytest.raises(InputError, match="not advice"):
            Advice.read(file)
    with pytest.raises(InputError, match="no such file"):
        Advice.read(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "--batch 0"), ({"threads": 0}, "--threads 0"), ({"seconds": 0.0}, "--seconds 0"),
        ({"seconds": float("nan")}, "--seconds nan"), ({"include": ["nothing*"]}, "no convolution is called nothing"),
        ({"opt": ["8x4x8x8"]}, "does not fit"),
    ],
)  # fmt: skip
def test_bad_options(model: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        advice_on(model, **options)


@pytest.mark.serial
def test_a_large_layer_pays(tmp_path: Path) -> None:
    """A quarter of the channels of a layer that is all arithmetic; with a clock that is real."""
    model = write_classifier(tmp_path / "net.onnx", (3, 128, 128))
    layer: LayerAdvice = advice_on(model, batch=32, seconds=10.0).layers["w1"]
    gains = {option.wanted: option.speed_up for option in layer.options if option.granularity.filter_group == 128}
    assert gains[0.25] > 1.5
    assert layer.recommended is not None

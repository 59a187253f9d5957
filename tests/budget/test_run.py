"""Whole searches on a small net: targets, files, resuming, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trtkp
from tests.models import write_classifier
from trtkp.budget.choices import DENSE, Level
from trtkp.budget.files import ALLOCATION, PLOT, RECORD, document, write
from trtkp.budget.net import Net, Quality
from trtkp.budget.options import SearchOptions
from trtkp.budget.plot import trade_off
from trtkp.budget.run import run_search
from trtkp.budget.state import State
from trtkp.cli import main
from trtkp.data.labelled import LabelledData
from trtkp.errors import InputError, JobError
from trtkp.machine.timing import Timing
from trtkp.pruning.methods.allocation import load_allocation

OPTIONS = trtkp.BuildOptions(backend="onnxruntime", opt=["8x3x8x8"], threads=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classifier(tmp_path_factory.mktemp("model") / "net.onnx", (3, 32, 64, 64))


@pytest.fixture(scope="module")
def data() -> LabelledData:
    rng = np.random.default_rng(0)
    return LabelledData(rng.standard_normal((24, 3, 8, 8)).astype(np.float32), rng.integers(0, 5, 24))


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times as if a layer took what it keeps: 4 ms, two of the net's own, and a net that keeps to its layers' sum."""

    def times(net: Net, levels: Mapping[str, Level]) -> dict[str, tuple[float, float]]:
        return {name: (4.0, 4.0 * (1 - level.ratio)) for name, level in levels.items()}

    def race(net: Net, levels: Mapping[str, Level]) -> tuple[Timing, Timing]:
        return Timing(10, 0, 0, 3), Timing(10 - 4 * sum(level.ratio for level in levels.values()), 0, 0, 3)

    monkeypatch.setattr(Net, "times", times)
    monkeypatch.setattr(Net, "race", race)
    monkeypatch.setattr(Net, "dense_time", lambda net: 10.0)


def options(**given: Any) -> SearchOptions:
    return SearchOptions(**{"ratios": (0.25, 0.5, 0.75), "filter_groups": (16,), "trials": 4, **given})


def test_a_target_of_macs(model: Path, data: LabelledData, tmp_path: Path) -> None:
    phases: list[str] = []
    result = run_search(
        model, data, options(target_flops=0.6), state=tmp_path / "out", options=OPTIONS,
        progress=lambda phase, done, of: phases.append(phase),
    )  # fmt: skip
    assert result.reached
    assert result.found.macs <= 0.6
    assert result.measure == "accuracy"
    assert list(result.choices) == ["w1", "w2"]  # the stem is out of V-SKP's scope
    assert all(layer[0].level == DENSE and layer[0].error == 0 for layer in result.choices.values())
    assert any(phase.startswith("Timing") for phase in phases)
    assert not list(tmp_path.iterdir())  # nothing is left of the state
    net = Net(model, "vskp", {}, OPTIONS, data, 256)
    dense = sum(layer[0].macs for layer in result.choices.values()) + net.other_macs
    kept = sum(choice.macs for choice in result.chosen.values()) + net.other_macs
    assert result.found.macs == pytest.approx(kept / dense)
    quality = net.quality({name: choice.level for name, choice in result.chosen.items()})
    assert quality.loss == pytest.approx(result.found.loss)
    # a bundle with this allocation keeps as much
    write(result, tmp_path / "out", "net")
    bundle = trtkp.build(
        model, tmp_path / "b", method="vskp", options=OPTIONS, allocation=str(tmp_path / "out" / ALLOCATION)
    )
    totals = bundle.manifest.totals
    assert totals.retained_macs / totals.dense_macs == pytest.approx(result.found.macs, abs=1e-6)
    assert bundle.manifest.settings["allocation"] == json.loads((tmp_path / "out" / ALLOCATION).read_text())["layers"]


@pytest.mark.usefixtures("planted")
def test_a_target_of_latency_and_the_points_on_the_way(model: Path, data: LabelledData, tmp_path: Path) -> None:
    result = run_search(model, data, options(target_latency=0.5), state=tmp_path / "out", options=OPTIONS)
    names = [point.name for point in result.points]
    assert names[:2] == ["dense", "25% of 16 x 1"]
    assert result.points[0].score == result.dense.score
    assert [point.latency for point in result.points[:4]] == pytest.approx([1, 0.8, 0.6, 0.4])
    assert "searched" in names
    assert result.reached
    assert result.measured.share == pytest.approx(result.found.latency)
    assert result.measured.share <= 0.5
    found = document(result)
    assert json.loads(json.dumps(found))["points"] == found["points"]
    assert found["layers"]["w1"]["choices"][found["layers"]["w1"]["chosen"]]["ratio"] == result.chosen["w1"].level.ratio


@pytest.mark.usefixtures("planted")
def test_the_largest_drop(model: Path, data: LabelledData, tmp_path: Path) -> None:
    result = run_search(model, data, options(max_drop=100.0), state=tmp_path / "out", options=OPTIONS)
    assert result.found.latency < 1
    strict = run_search(model, data, options(max_drop=4.2), state=tmp_path / "out", options=OPTIONS)
    assert strict.found.score is not None
    assert strict.dense.score is not None
    assert 100 * (strict.dense.score - strict.found.score) <= 4.2 + 1e-9


@pytest.mark.usefixtures("planted")
def test_it_goes_on_where_it_was_interrupted(
    model: Path, data: LabelledData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(phase: str, done: int, of: int) -> None:
        if phase.startswith("Searching"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_search(model, data, options(target_flops=0.6), state=tmp_path / "out", options=OPTIONS, progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == [".out.searching"]
    timed: list[object] = []
    times = Net.times
    monkeypatch.setattr(Net, "times", lambda net, levels: timed.append(levels) or times(net, levels))
    result = run_search(model, data, options(target_flops=0.6), state=tmp_path / "out", options=OPTIONS)
    assert not timed  # the tables were there
    assert result.found.macs <= 0.6
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("planted")
def test_numbers_of_another_search_are_forgotten(model: Path, data: LabelledData, tmp_path: Path) -> None:
    def stop(phase: str, done: int, of: int) -> None:
        if phase.startswith("Searching"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_search(model, data, options(target_flops=0.6), state=tmp_path / "out", options=OPTIONS, progress=stop)
    phases: list[str] = []
    run_search(
        model, data, options(target_flops=0.6, samples=8), state=tmp_path / "out", options=OPTIONS,
        progress=lambda phase, done, of: phases.append(phase),
    )  # fmt: skip
    assert "Timing 25% of 16 x 1" in phases


@pytest.mark.usefixtures("planted")
def test_without_labels_agreement_counts(model: Path, data: LabelledData, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=data.inputs)
    result = run_search(model, tmp_path / "x.npz", options(target_flops=0.7), state=tmp_path / "out", options=OPTIONS)
    assert result.measure == "agreement"
    assert result.found.loss == pytest.approx(sum(c.error for c in result.chosen.values()) ** 0.5, rel=3)


@pytest.mark.usefixtures("planted")
@pytest.mark.usefixtures("planted")
def test_a_net_slower_than_its_layers_tell(
    model: Path, data: LabelledData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def race(net: Net, levels: Mapping[str, Level]) -> tuple[Timing, Timing]:
        return Timing(10, 0, 0, 3), Timing(10 - 3.2 * sum(level.ratio for level in levels.values()), 0, 0, 3)

    monkeypatch.setattr(Net, "race", race)
    result = run_search(model, data, options(target_latency=0.65), state=tmp_path / "out", options=OPTIONS)
    assert result.found.latency < 0.6
    assert result.measured.share <= 0.65 * 1.01
    assert result.reached
    result = run_search(model, data, options(target_latency=0.45), state=tmp_path / "out", options=OPTIONS)
    assert not result.reached
    assert result.measured.share == pytest.approx(0.52)  # the fastest there is


@pytest.mark.usefixtures("planted")
def test_a_target_that_nothing_reaches(
    model: Path, data: LabelledData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"the cheapest choice takes \d+% of the dense net, the target is 5%"):
        run_search(model, data, options(target_flops=0.05), state=tmp_path / "out", options=OPTIONS)
    monkeypatch.setattr(
        Net, "quality", lambda net, levels: Quality(0.1, float(all(level == DENSE for level in levels.values())), 0.1)
    )
    with pytest.raises(JobError, match="no choice keeps the one-shot drop within 1 points"):
        run_search(
            model, data, options(max_drop=1.0), state=tmp_path / "out", options=OPTIONS
        )  # fmt: skip


def test_the_command(model: Path, data: LabelledData, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "d.npz", x=data.inputs, y=data.labels)
    out = tmp_path / "found"
    line = ["search", str(model), "--data", str(tmp_path / "d.npz"), "-o", str(out), "--opt", "8x3x8x8"]
    line += ["--trials", "2", "--ratios", "0.5,0.75", "--filter-groups", "16", "--threads", "1"]
    assert main([*line, "--target-flops", "60%"]) == 0
    printed = capsys.readouterr().out
    assert "w1" in printed
    assert "MACs" in printed
    assert f"--allocation {out / ALLOCATION}" in printed
    assert sorted(path.name for path in out.iterdir()) == [ALLOCATION, RECORD, PLOT]
    assert set(load_allocation(out / ALLOCATION).layers) <= {"w1", "w2"}
    assert main([*line, "--target-flops", "0.6", "--json"]) == 0  # an older search gives way
    assert json.loads(capsys.readouterr().out)["reached"] is True


@pytest.mark.usefixtures("planted")
def test_the_plot(model: Path, data: LabelledData, tmp_path: Path) -> None:
    found = options(target_latency=0.5, filter_groups=(16, 32))
    result = run_search(model, data, found, state=tmp_path / "out", options=OPTIONS)
    page = trade_off(result, "a <net>")
    figure = json.loads(re.findall(r"Plotly\.newPlot\(\s*\"[^\"]+\",\s*(\[.*?\]),\s*\{", page, re.DOTALL)[-1])
    names = [trace["name"] for trace in figure if trace.get("showlegend")]
    assert names == ["searched", "every layer alike, 16 x 1", "every layer alike, 32 x 1", "found"]
    assert [len(trace["customdata"]) for trace in figure if trace["name"].endswith("16 x 1")] == [4, 4]
    assert "<script src" not in page
    assert "a <net>" not in page.split("Plotly.newPlot")[0]


def test_packages_are_asked_for_first(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("trtkp.machine.packages.importable", lambda module: module != "optuna")
    assert main(["search", str(model), "--target-flops", "50%", "-o", str(tmp_path / "o")]) == 1
    assert "a search needs optuna; pip install 'trtkp[search]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "a search has one target"),
        ({"target_flops": 0.5, "max_drop": 1.0}, "a search has one target"),
        ({"target_latency": 1.2}, "--target-latency 120%: out of range; give more than 0% and below 100%"),
        ({"target_flops": 0.5, "ratios": (1.5,)}, "--ratios 1.5: out of range; give more than 0 and below 1"),
        ({"target_flops": 0.5, "filter_groups": (0,)}, "--filter-groups 0: out of range; give 1 or more"),
        ({"target_flops": 0.5, "trials": 0}, "--trials 0: out of range; give 1 or more"),
        ({"max_drop": -1.0}, "--max-drop -1: out of range; give 0 or more"),
        ({"target_flops": 0.5, "method": "nope"}, "--method nope: not known"),
    ],
)
def test_what_is_refused(given: dict[str, Any], message: str, model: Path, data: LabelledData, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        run_search(model, data, options(**given), state=tmp_path / "out", options=OPTIONS)


def test_no_data_and_a_place_that_is_taken(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="a search scores the net on real inputs; give --data"):
        run_search(model, None, options(target_flops=0.5), state=tmp_path / "out", options=OPTIONS)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    assert main(["search", str(model), "--target-flops", "50%", "-o", str(tmp_path / "mine")]) == 2
    assert "exists already and is not the result of a search; give another -o" in capsys.readouterr().err
    assert main(["search", str(model), "--target-flops", "half", "-o", str(tmp_path / "o")]) == 2
    assert "--target-flops half: not a share; write it as 60%" in capsys.readouterr().err


@pytest.mark.usefixtures("planted")
def test_one_search_at_a_time(model: Path, data: LabelledData, tmp_path: Path) -> None:
    given = options(target_latency=0.5)
    with (
        State(tmp_path / "out", "another"),
        pytest.raises(JobError, match="out: another search is writing here; wait for it, or choose another -o"),
    ):
        run_search(model, data, given, state=tmp_path / "out", options=OPTIONS)
    assert run_search(model, data, given, state=tmp_path / "out", options=OPTIONS).reached


def test_levels_that_remove_nothing(model: Path, data: LabelledData, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no level removes anything from any layer; give larger --ratios"):
        run_search(model, data, options(target_latency=0.5, ratios=(0.001,)), state=tmp_path / "out", options=OPTIONS)


def test_a_state_that_cannot_be_written(tmp_path: Path) -> None:
    with State(tmp_path / "out", "key") as state:
        state["a"] = 1
        assert state["a"] == 1
        shutil.rmtree(state.folder)
        with pytest.raises(JobError, match="cannot be written"):
            state["b"] = 2
    assert not list(tmp_path.iterdir())

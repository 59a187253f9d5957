"""The study's runner: what it plans, a tiny study from end to end, going on, and the page made of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from torch import nn

from benchmarks.accuracy.__main__ import is_result_of, main
from benchmarks.accuracy.plan import SCALES, TABLES, Run, runs_of
from benchmarks.accuracy.report import document, write_report
from benchmarks.accuracy.results import add_row, read_rows
from benchmarks.accuracy.schedule import in_turn
from examples.nets.resnet import resnet20_cifar
from examples.nets.shapes import shapes_cnn
from tests.examples.test_nets import macs_of

ROOT = Path(__file__).parents[2]


def test_the_plan() -> None:
    runs = runs_of(SCALES["full"])
    names = [run.name for run in runs]
    assert len(set(names)) == len(names)
    assert f"{len(runs)} trainings" in (ROOT / "docs/methods/index.md").read_text()
    for i, run in enumerate(runs):
        assert run.table in TABLES
        assert run.start is None or run.start in names[:i]
    for table in ("groups", "two-four", "searched"):
        seeds = [{run.seed for run in runs if (run.table, run.label) == (table, label)}
                 for label in {run.label for run in runs if run.table == table}]  # fmt: skip
        assert all(found == {0, 1, 2} for found in seeds)
    by_name = {run.name: run for run in runs}
    for table in TABLES[1:]:
        lengths = set()
        for run in runs:
            longer = run.method == "dppnet" or "as long" in run.label
            if run.table == table and run.label != "regularised" and not longer:
                start = by_name[run.start] if run.start else run
                lengths.add(sum(run.epochs) + (sum(start.epochs) if start.label == "regularised" else 0))
        assert len(lengths) == 1, table


def test_a_tiny_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--out", str(tmp_path / "study"), "--scale", "smoke", "--tables", "two-four", "--jobs", "2"]
    assert main([*command, "--most", "2"]) == 0
    assert "left: 9" in capsys.readouterr().out
    results = tmp_path / "study" / "results.jsonl"
    results.write_text(results.read_text() + '{"name": "cut o')
    first = read_rows(results)
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "left: nothing" in out
    assert "shapes-0" not in out  # it was done
    rows = read_rows(results)
    assert rows[:2] == first
    assert len(rows) == 11
    two = {row["label"]: row for row in rows}
    half, eighth = two["50.0% plain 2:4"], two["87.5% lists of 8, 2:4 inside"]
    assert half["macs"] == pytest.approx(two["50.0% one-filter lists"]["macs"])
    assert eighth["macs"] == pytest.approx(two["87.5% one-filter lists"]["macs"], abs=0.03)
    assert two["50.0% channels"]["macs"] <= half["macs"] < two["50.0% channels"]["macs"] + 0.1
    assert 0.5 < half["mass"] < 1
    assert main(command) == 0
    assert capsys.readouterr().out == "left: nothing\n"
    with results.open("a") as file:  # as the run was with other settings
        file.write(json.dumps(rows[-1] | {"settings": {"ratio": 0.1}}) + "\n")
    assert main([*command, "--most", "0"]) == 0
    assert capsys.readouterr().out == "left: 1\n"
    write_report(results, tmp_path)
    page = (tmp_path / "accuracy.md").read_text()
    assert "## 2:4 inside the lists" in page
    assert "| 50.0% plain 2:4 |" in page
    assert "1 seed." in page


def test_one_command_runs_times_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = [run for run in runs_of(SCALES["smoke"]) if run.name in ("shapes-0", "methods-1")]
    monkeypatch.setattr("benchmarks.accuracy.__main__.runs_of", lambda scale: plan)
    command = ["--out", str(tmp_path / "study"), "--scale", "smoke", "--docs", str(tmp_path)]
    assert main([*command, "--most", "1"]) == 0
    assert not (tmp_path / "accuracy.md").exists()
    assert main(command) == 0
    latency = {row["name"]: row for row in read_rows(tmp_path / "study" / "results.jsonl")}["latency"]
    assert latency["latency"].keys() == {"shapes-0", "methods-1"}
    assert all(0 < times["p10_ms"] <= times["median_ms"] <= times["p90_ms"] for times in latency["latency"].values())
    page = (tmp_path / "accuracy.md").read_text()
    assert "| l1 56% |" in page
    assert "latency, of dense" in page
    # a dot, or one that lies outside: on a busy machine the pruned net can take longer than the dense one
    plot = (tmp_path / "accuracy-latency.svg").read_text()
    assert plot.count('r="3"') + plot.count("(1 lie outside)") == 1


def test_the_net_is_of_the_size_that_the_page_says() -> None:
    def size(factory: Callable[[], nn.Module]) -> tuple[str, str]:
        macs = sum(macs_of(factory, (3, 32, 32)).values())
        return f"{sum(value.numel() for value in factory().parameters()) / 1e6:.2f} M", f"{macs / 1e6:.0f} M"

    (params, macs), (more_params, more_macs) = size(partial(shapes_cnn, SCALES["full"].width)), size(resnet20_cifar)
    page = " ".join((ROOT / "docs/methods/accuracy.md").read_text().split())
    assert f"It has {params} parameters and {macs} MACs, fewer than a ResNet-20 ({more_params} and {more_macs})" in page


def test_rows_that_failed_are_run_again_and_shown(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    where = {"command": "c", "cpu": "p", "libraries": {"torch": "2"}, "commit": "0", "date": "d"}
    base = {"scale": "s", "data": "shapes", "seed": 0, "method": "dppnet", "provenance": where}
    add_row(path, {**base, "name": "a", "table": "methods", "label": "dppnet", "failed": "gone"})
    rows = read_rows(path, "s")
    assert read_rows(path, "other") == []
    assert "- methods, dppnet: gone" in document(rows)
    done = {"accuracy": {"pruned": 0.9, "one-shot": 0.1}, "macs": 0.4, "params": 0.4, "mass": None}
    add_row(path, {**base, "name": "a", "table": "methods", "label": "dppnet", **done})
    add_row(path, {**base, "name": "b", "table": "methods", "label": "l1 x", **done, "mass": 0.6})
    latency = {name: {"median_ms": value} for name, value in (("shapes-0", 2.0), ("a", 1.0), ("b", 1.5))}
    add_row(path, {"name": "latency", "scale": "s", "latency": latency, "provenance": where})
    write_report(path, tmp_path)
    page = (tmp_path / "accuracy.md").read_text()
    assert "Failed" not in page
    assert "| dppnet | 40.0% | 40.0% | - | 10.0% | 90.00% | 0.50 |" in page
    for name in ("macs", "latency"):
        assert f"accuracy-{name}.svg" in page
        assert (tmp_path / f"accuracy-{name}.svg").read_text().count('r="3"') == 2
    assert json.loads(path.read_text().splitlines()[0])["failed"] == "gone"


def test_the_documents_are_of_the_results(tmp_path: Path) -> None:
    results = ROOT / "benchmarks/results/accuracy.jsonl"
    rows = {row["name"]: row for row in read_rows(results, SCALES["full"].digest())}
    runs = runs_of(SCALES["full"])
    assert rows.keys() == {run.name for run in runs} | {"latency"}
    assert all(is_result_of(run, rows[run.name]) for run in runs)
    write_report(results, tmp_path)
    for name in ("accuracy.md", "accuracy-macs.svg", "accuracy-latency.svg"):
        assert (tmp_path / name).read_text() == (ROOT / "docs/methods" / name).read_text(), name


def test_what_is_said_of_the_penalty_against_plain_l1_is_so() -> None:
    """The words of docs/methods/index.md and accuracy.md, from the results: all seeds, the same epochs in all."""
    found: dict[str, dict[int, float]] = {}
    for row in read_rows(ROOT / "benchmarks/results/accuracy.jsonl", SCALES["full"].digest()):
        if row.get("table") == "groups":
            found.setdefault(row["label"], {})[row["seed"]] = row["accuracy"]["pruned"]
    assert found["pptkp 1"].keys() == found["l1 1"].keys() == {0, 1, 2}
    accuracy = {label: mean(seeds.values()) for label, seeds in found.items()}
    methods, page = (
        " ".join((ROOT / "docs/methods" / name).read_text().split()) for name in ("index.md", "accuracy.md")
    )
    gain = 100 * (accuracy["pptkp 1"] - accuracy["l1 1"])
    assert ("PPT-KP loses less accuracy than plain L1" in methods) == (gain > 0)
    assert f"PPT-KP loses {abs(gain):.2f} points {'less' if gain > 0 else 'more'} than plain L1" in page
    gains = {n: 100 * (accuracy[f"pptkp {n} aware"] - accuracy[f"l1 {n}"]) for n in ("8", "16", "32", "16x8")}
    hardly = gains.pop("16x8")
    assert ("with shared lists the difference is much larger" in methods) == all(far > gain for far in gains.values())
    assert ("with channels in blocks as well it is small" in methods) == (0 < hardly < gain)


def _worked(run: Run) -> dict[str, Any]:
    if run.name == "fails":
        raise RuntimeError("no")
    if run.name == "dies":
        os._exit(1)
    return {"accuracy": len(run.name)}


def test_runs_that_fail_lose_no_other(tmp_path: Path) -> None:
    def run(name: str, start: str | None = None) -> Run:
        return Run(name, "t", "l", "shapes", 0, "none", {}, start)

    runs = [run("fails"), run("after", "fails"), run("good"), run("then", "good")]
    rows = {each.name: row for each, row in in_turn(runs, set(), _worked, 2, 2)}
    assert rows == {
        "fails": {"failed": "RuntimeError: no"}, "after": {"failed": "fails is not done"},
        "good": {"accuracy": 4}, "then": {"accuracy": 4},
    }  # fmt: skip
    rows = {each.name: row for each, row in in_turn([run("dies"), run("good")], set(), _worked, 1, 1)}
    assert rows.keys() == {"dies", "good"}
    assert all("failed" in row for row in rows.values())


_KILLED = """
from benchmarks.accuracy.plan import Run
from benchmarks.accuracy.results import add_row, read_rows
from benchmarks.accuracy.schedule import in_turn
from examples.nets.resnet import resnet20_cifar
from examples.nets.shapes import shapes_cnn
from tests.examples.test_nets import macs_of
from endless import work
if __name__ == "__main__":
    list(in_turn([Run("a", "t", "l", "shapes", 0, "none")], set(), work, 1, 1))
"""


_ENDLESS = """
import os, time
def work(run):
    open(NOTED, "w").write(f"{os.getpid()}.")
    time.sleep(600)
"""


def test_a_killed_study_leaves_no_run_behind(tmp_path: Path) -> None:
    noted = tmp_path / "pid"
    (tmp_path / "endless.py").write_text(_ENDLESS.replace("NOTED", repr(str(noted))))
    (tmp_path / "main.py").write_text(_KILLED)
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    study = subprocess.Popen([sys.executable, str(tmp_path / "main.py")], env=os.environ | {"PYTHONPATH": path})
    assert within(120, lambda: noted.exists() and noted.read_text().endswith("."))
    worker = int(noted.read_text()[:-1])
    study.kill()
    study.wait()
    assert within(60, lambda: ended(worker))


def ended(process: int) -> bool:
    status = Path(f"/proc/{process}/status")
    return not status.exists() or "zombie" in status.read_text()


def within(seconds: float, done: Callable[[], bool]) -> bool:
    """Whether it is so before the time is up."""
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(0.1)
    return done()


def test_the_page_says_what_the_tables_decide() -> None:
    where = {"command": "c", "cpu": "p", "libraries": {"torch": "2"}, "commit": "0", "date": "d"}

    def rows(table: str, accuracies: dict[str, tuple[float, float]]) -> list[dict[str, Any]]:
        return [
            {"name": f"{label}{seed}", "table": table, "label": label, "seed": seed, "method": "x", "data": "shapes",
             "accuracy": {"pruned": accuracy, "one-shot": 0.1}, "macs": 0.4, "params": 0.4, "mass": None,
             "provenance": where}
            for label, both in accuracies.items() for seed, accuracy in enumerate(both)
        ]  # fmt: skip

    page = document([
        *rows("dense", {"dense": (0.9, 0.9)}),
        *rows("groups", {
            "l1 1": (0.88, 0.87), "pptkp 1": (0.90, 0.89), "l1 8": (0.86, 0.86), "pptkp 8 after": (0.84, 0.86),
            "pptkp 8 aware": (0.88, 0.87),
        }),
        *rows("searched", {
            "searched": (0.8, 0.8), "searched, as long": (0.84, 0.84), "ASK_4a": (0.81, 0.82), "ASK_4b": (0.7, 0.7),
            "ASK_4a, as long": (0.83, 0.84),
        }),
    ])  # fmt: skip
    assert "PPT-KP loses 2.00 points less than plain L1." in page
    assert "| 8 | 86.00% | 85.00% | 87.50% | 2.50 | 56% |" in page
    partly = document([*rows("groups", {"l1 1": (0.9, 0.9), "pptkp 1": (0.9, 0.9), "pptkp 8 aware": (0.9, 0.9)}),
                       *rows("dense", {"dense": (0.9, 0.9)})])  # fmt: skip
    assert "won back" in partly
    assert "| 8 |" not in partly
    assert "as many epochs in all: searched: 1.50 points below; searched, as long: 0.50 points above." in page

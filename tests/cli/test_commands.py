"""Every command, for people and as JSON."""

from __future__ import annotations

import logging
import re
import warnings
from pathlib import Path

import pytest

import trtkp as package
from trtkp.bundle import Manifest
from trtkp.cli.app import COMMANDS, load_command

from .conftest import Trtkp

MANIFEST_KEYS = set(Manifest.model_fields)


def test_build(trtkp: Trtkp, folder: Path) -> None:
    done = trtkp("build", "net.onnx", "-o", "new", "--n", "2", "--share", "per-filter")
    assert done.status == 0
    first, params, macs, plan, engine = done.out.splitlines()
    assert first == "new  kep for onnxruntime fp32, image 1x3x8x8..64x3x8x8"
    manifest = package.load("new").manifest
    totals = manifest.totals
    assert f"params {totals.dense_params:,} → {totals.retained_params:,} (" in params
    assert f"{totals.dense_macs:,} → {totals.retained_macs:,}" in macs
    assert f"bound {totals.dense_macs / totals.retained_macs:.2f}x" in macs
    assert "plan   measured: " in plan
    assert re.search(r"engine \d+\.\d kB, built in \d+\.\d s", engine)
    assert done.err.splitlines() == [f"warning: {warning}" for warning in manifest.warnings]
    assert manifest.settings["n"] == 2


def test_build_as_json(trtkp: Trtkp, folder: Path) -> None:
    done = trtkp("build", "net.onnx", "-o", "new", "--data", "data.npz", "--skip", "w1", "--json")
    assert (done.status, done.err) == (0, "")
    document = done.document
    assert document.keys() == {"bundle"} | MANIFEST_KEYS
    assert document["bundle"] == "new"
    assert document == {"bundle": "new", **package.load("new").manifest.model_dump(mode="json")}
    assert set(document["accuracy"]) == {"dense", "pruned"}
    assert document["skip"] == ["w1"]
    assert {layer["name"]: layer["reason"] for layer in document["layers"]}["w1"] == "skipped by the user"


def test_every_option_of_build_arrives(trtkp: Trtkp, folder: Path) -> None:
    done = trtkp(
        "build", "net.onnx", "--output", "new", "-m", "kep", "--ratio", "0.7", "--allocation", "uniform", "--share",
        "per-channel", "--layers", "w*", "--skip", "w0", "-b", "onnxruntime", "-p", "fp16", "--convert-io",
        "--min", "2x3x8x8", "--opt", "image:3x3x8x8", "--max", "5x3x8x8", "--lowering", "dense", "--threads", "1",
        "--json",
    )  # fmt: skip
    assert done.status == 0, done.err
    document = done.document
    wanted = {"n": None, "ratio": 0.7, "allocation": "uniform", "share": "per-channel"}
    assert document["settings"].items() >= wanted.items()
    assert (document["include"], document["skip"]) == (["w*"], ["w0"])
    assert (document["precision"], document["keep_io"]) == ("fp16", False)
    assert {tensor["dtype"] for tensor in (*document["inputs"], *document["outputs"])} == {"float16"}
    assert document["profile"] == {"image": {"min": [2, 3, 8, 8], "opt": [3, 3, 8, 8], "max": [5, 3, 8, 8]}}
    assert (document["plan"]["status"], document["plan"]["threads"]) == ("forced", 1)
    assert document["layers"][1]["density"] == pytest.approx(3 / 9)


def test_inspect(trtkp: Trtkp, folder: Path) -> None:
    done = trtkp("inspect", "kep")
    assert (done.status, done.err) == (0, "")
    for words in ("kep for onnxruntime", "method kep (n 4, allocation uniform, share per-layer", "source ../net.onnx"):
        assert words in done.out
    lines = {line.split()[0]: line for line in done.out.splitlines() if line.strip()}
    assert re.search(r"w0 +dense .* stem$", lines["w0"].rstrip())
    assert re.search(r"w1 +stripe +32 x 16 x 3 x 3 +8x8 +0\.444 .*taps +asked for", lines["w1"])
    assert trtkp("inspect", "kep", "--json").document.keys() == {"bundle"} | MANIFEST_KEYS


def test_names_that_look_like_markup(trtkp: Trtkp, folder: Path) -> None:
    Path("kep").rename("[bold]x")
    for command in ("inspect", "verify", "bench"):
        done = trtkp(command, "[bold]x")
        assert done.status == 0
        if command != "verify":
            assert "[bold]x" in done.out
    assert trtkp("inspect", "[red]no[/]").message.startswith("[red]no[/]: no such bundle")


def test_verify(trtkp: Trtkp, folder: Path) -> None:
    done = trtkp("verify", "kep")
    assert (done.status, done.err) == (0, "")
    assert [line.split()[0] for line in done.out.splitlines()] == [
        "artefact", "dense", "model.onnx", "engine.onnx", "engine",
    ]  # fmt: skip
    assert done.out.count("verified") == 4
    document = trtkp("verify", "kep", "--json").document
    assert document.keys() == {"bundle", "precision", "checks", "require_engine", "ok", "hint", "scores"}
    assert document["ok"] is True
    for check in document["checks"]:
        assert check.keys() == {"artefact", "against", "status", "reason", "tolerance", "outputs"}
        assert check["outputs"]["y"].keys() == {"max_abs", "relative"}


def test_bench(trtkp: Trtkp, folder: Path) -> None:
    done = trtkp("bench", "dense", "kep", "--batch", "2", "--runs", "3", "--warmup", "1", "--threads", "1")
    assert (done.status, done.err) == (0, "")
    heading, dense, kep = done.out.splitlines()
    assert heading.split()[-2:] == ["samples/s", "speed-up"]
    assert dense.split()[0] == "dense"
    assert dense.split()[-1] == "1.00"
    assert kep.split()[0] == "kep"
    document = trtkp("bench", "dense", "kep", "--runs", "3", "--json").document
    assert [result["bundle"] for result in document["results"]] == ["dense", "kep"]
    assert document["results"][0].keys() == {
        "bundle", "backend", "precision", "batch", "threads", "timing", "throughput", "gpu",
    }  # fmt: skip
    assert document["results"][0]["timing"].keys() == {"median_ms", "p10_ms", "p90_ms", "runs"}


def test_compare(trtkp: Trtkp, folder: Path) -> None:
    options = ("--batch", "1,3", "--runs", "3", "--warmup", "1", "--threads", "1")
    done = trtkp("compare", "dense", "kep", *options, "--data", "data.npz", "--csv", "x.csv", "--html", "x.html")
    assert (done.status, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0].split()[:2] == ["engine", "runs"]
    assert lines[2].split()[:3] == ["kep", "onnxruntime", "fp32"]
    assert sum(line.startswith("dense ") for line in lines) == 4
    assert any(line.startswith("kep against dense: at batch 1 ") for line in lines)
    assert "Outputs are compared on all 8 samples of data.npz." in lines
    assert [line.split(" (")[0] for line in lines if line.startswith("written")] == [
        "written: x.csv", "written: x.html",
    ]  # fmt: skip
    assert Path("x.csv").read_text().count("\n") == 5
    report = Path("x.html").read_text(encoding="utf-8")
    assert "trtkp compare dense kep --batch 1,3 --runs 3" in report
    assert str(folder) not in report
    done = trtkp("compare", "dense", "kep", "net.onnx", *options, "--no-layers", "--json", "--csv", "x.csv")
    assert (done.status, done.err) == (0, "")
    document = done.document
    assert document.keys() == {
        "entries", "batches", "inputs", "data", "rounds", "environment", "created", "written",
    }  # fmt: skip
    assert [entry["label"] for entry in document["entries"]] == ["dense", "kep", "net.onnx"]
    assert document["batches"] == [1, 3]
    assert document["written"] == ["x.csv"]


def test_doctor(trtkp: Trtkp) -> None:
    done = trtkp("doctor")
    assert (done.status, done.err) == (0, "")
    assert "onnxruntime" in done.out
    document = trtkp("doctor", "--json").document
    for check in document["checks"]:
        assert check.keys() == {"name", "status", "version", "detail", "remedy"}


@pytest.mark.parametrize("command", ["build", "inspect", "verify", "bench", "compare"])
def test_no_path_is_shown_that_the_user_did_not_give(trtkp: Trtkp, folder: Path, command: str) -> None:
    arguments = {"build": ["net.onnx", "-o", "new"], "compare": ["dense", "kep", "--runs", "1"]}.get(command, ["kep"])
    for form in ([], ["--json"]):
        done = trtkp(command, *arguments, *form)
        assert done.status == 0
        for private in (str(folder.parent), str(Path.home()), str(Path(package.__file__).parent)):
            assert private not in done.out + done.err


def test_help(trtkp: Trtkp) -> None:
    for arguments in (["--help"], ["-h"], ["build", "--help"], ["bench", "-h"]):
        done = trtkp(*arguments)
        assert (done.status, done.err) == (0, "")
        assert "Usage: trtkp" in done.out
    nothing = trtkp()
    assert nothing.status == 2
    assert "Usage: trtkp" in nothing.out + nothing.err
    assert "error:" not in nothing.out + nothing.err


def test_version(trtkp: Trtkp) -> None:
    assert trtkp("--version") == trtkp("--version", "inspect")
    assert (trtkp("--version").status, trtkp("--version").out) == (0, f"{package.__version__}\n")


def test_libraries_are_quiet_only_while_a_command_runs(trtkp: Trtkp, folder: Path) -> None:
    filters, level = list(warnings.filters), logging.root.manager.disable
    trtkp("inspect", "kep")
    trtkp("inspect", "nothing")
    assert list(warnings.filters) == filters
    assert logging.root.manager.disable == level


def test_no_help_holds_what_is_taken_for_markup() -> None:
    helps = [parameter.help or "" for name in COMMANDS for parameter in load_command(name).params]
    assert len(helps) > 60
    assert [text for text in helps if "[" in text] == []


def test_advise(trtkp: Trtkp, folder: Path) -> None:
    done = trtkp("advise", "net.onnx", "--seconds", "5", "--batch", "2", "--json")
    assert done.status == 0
    document = done.document
    assert (document["format"], document["version"], document["batch"]) == ("trtkp.advice", 1, 2)
    assert document["layers"].keys() == {"w1", "w2"}
    assert document["left_out"] == {"w0": "stem"}
    shown = trtkp("advise", "net.onnx", "--seconds", "5", "--batch", "2", "--skip", "w1")
    assert shown.status == 0
    assert "w2" in shown.out
    assert "75% kept" in shown.out
    assert "w1" not in shown.out
    assert trtkp("advise", "net.onnx", "--batch", "0").message == "--batch 0: out of range; give 1 or more"


def test_inspect_lowerings(trtkp: Trtkp, folder: Path) -> None:
    done = trtkp("inspect", "kep", "--lowerings")
    assert done.status == 0
    manifest = package.load("kep").manifest
    for layer in manifest.layers:
        for lowering in (*layer.candidates, *layer.inapplicable):
            assert lowering in done.out
        assert str(layer.why) in done.out or layer.lowering is None
    assert done.out.splitlines()[-1].startswith("  plan   forced: ")
    assert trtkp("inspect", "kep", "--forms").out == done.out  # its name before 0.2
    assert trtkp("build", "net.onnx", "-o", "new", "--method", "vskp", "--ratio", "0.5").status == 0
    weighed = trtkp("inspect", "new", "--lowerings").out
    for layer in package.load("new").manifest.layers:
        assert layer.candidates.keys() >= layer.spread.keys()
        assert all(f"{cost:.3f}" in weighed for cost in layer.candidates.values() if layer.measured)

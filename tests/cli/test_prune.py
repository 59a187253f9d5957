"""``trtkp prune``: what it writes, what ``build`` makes of it, and bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from examples.nets import export
from tests.pruning.run.conftest import rows_of, source, work
from trtkp.bundle import load as trtkp_load
from trtkp.bundle.pruned import load_pruned
from trtkp.errors import IntegrityError
from trtkp.model import load_model
from trtkp.pruning.run import PruneOptions, prune, training_folder
from trtkp.pruning.train.recipe import Recipe, Training

from .conftest import Trtkp

__all__ = ["source", "work"]


def test_prune_then_build_then_verify(trtkp: Trtkp, work: Path) -> None:
    done = trtkp("prune", "net.pt2", "--method", "kep", "--n", "3", "--data", "data.npz", "--epochs", "6",
                 "--lr", "0.1", "--batch", "30", "-o", "pruned", "--json")  # fmt: skip
    assert done.status == 0, done.err
    told = done.document
    assert told["method"] == "kep"
    assert told["settings"]["n"] == 3
    assert told["accuracy"]["pruned"] > 0.8 > told["accuracy"]["dense"]
    assert told["totals"]["retained_params"] == told["totals"]["dense_params"] - 2 * 64 * 6
    assert told["report"]["mu"] > 0
    rows = rows_of("pruned/log.csv")
    assert [row["stage"] for row in rows] == ["regularise"] * 6 + ["finetune"] * 6
    assert not training_folder(work / "pruned").exists()
    pruned = load_pruned("pruned")
    weights = load_model(pruned.model).parameters()
    for name, index in pruned.index_sets.items():
        assert np.array_equal(weights[name] != 0, index.mask())
        assert (index.mask().sum(axis=(2, 3)) == 3).all()
    built = trtkp("build", "pruned", "-b", "onnxruntime", "--data", "data.npz", "-o", "bundle", "--json")
    assert built.status == 0, built.err
    manifest = built.document
    assert manifest["method"] == "kep"
    assert manifest["totals"] == told["totals"]
    assert [layer["kind"] for layer in manifest["layers"]] == ["dense", "pattern", "pattern"]
    assert manifest["layers"][0]["reason"] == "stem"
    assert trtkp("verify", "bundle").status == 0
    text = trtkp("prune", "net.pt2", "-o", "pruned").out
    assert "2 layers pruned" in text
    assert "accuracy" not in text  # no data: one-shot, and the older directory was replaced


@pytest.mark.parametrize(
    "options",
    ["-m pptkp --ratio 0.4", "-m soks --ratio 0.4 --groups 2", "-m vskp --ratio 0.4", "-m soks --shapes ASK_4a"],
)
def test_every_method_trains(trtkp: Trtkp, work: Path, options: str) -> None:
    done = trtkp("prune", "net.pt2", *options.split(), "--data", "data.npz", "--epochs", "1", "-o", "p", "--json")
    assert done.status == 0, done.err
    pruned = load_pruned("p")
    weights = load_model(pruned.model).parameters()
    assert len(pruned.index_sets) == 2
    for name, index in pruned.index_sets.items():
        assert not weights[name][~index.mask()].any()
    rows = rows_of("p/log.csv")
    assert all(row["test_accuracy"] for row in rows)
    stages = {row["stage"] for row in rows}
    assert stages == ({"finetune"} if "vskp" in options or "ASK" in options else {"regularise", "finetune"})


def test_a_dynamic_layer_that_keeps_every_position_is_recorded_once(trtkp: Trtkp, work: Path) -> None:
    """It is one of the layers that were converted: none of them is left dense."""
    done = trtkp("prune", "net.pt2", "-m", "dppnet", "--alpha", "0", "--data", "data.npz", "--epochs", "1", "-o", "p",
                 "--json")  # fmt: skip
    assert done.status == 0, done.err
    assert {layer["name"]: layer["density"] for layer in done.document["layers"]} == {"3.weight": 1, "7.weight": 1}
    assert done.document["left_dense"] == {"0.weight": "stem"}
    assert "method dppnet pruned no layer" in done.document["warnings"]


def test_dynamic_patterns_need_training_and_pytorch(trtkp: Trtkp, work: Path, built: Path) -> None:
    done = trtkp("build", "net.pt2", "-m", "dppnet", "-o", "b")
    assert "--method dppnet learns its patterns; use trtkp prune with --data" in done.message
    assert done.status == 2
    done = trtkp("prune", "net.pt2", "-m", "dppnet", "-o", "p")
    assert "--method dppnet learns its patterns in training; give --data and --epochs" in done.message
    done = trtkp("prune", "net.pt2", "-m", "dppnet", "--alpha", "30", "--data", "data.npz", "--epochs", "3", "-o", "p")
    assert "its patterns have no position left" in done.message
    assert done.status == 2
    Path("p.yaml").write_text("prepare: {epochs: 1}\n")
    done = trtkp("prune", "net.pt2", "-m", "kep", "--recipe", "p.yaml", "--data", "data.npz", "-o", "p")
    assert "method kep has no stage prepare" in done.message
    done = trtkp("prune", str(built / "net.onnx"), "-m", "dppnet", "--data", "data.npz", "--epochs", "1", "-o", "p")
    assert done.status == 2
    assert not Path("p").exists()


def test_accuracies_in_the_log_are_as_rare_as_asked(trtkp: Trtkp, work: Path) -> None:
    command = ["prune", "net.pt2", "-m", "vskp", "--data", "data.npz", "--epochs", "2", "-o", "p", "--test-every"]
    assert trtkp(*command, "2", "--tensorboard", "runs").status == 0
    assert list(Path("runs/finetune").glob("events*"))
    assert [bool(row["test_accuracy"]) for row in rows_of("p/log.csv")] == [False, True]
    refused = trtkp(*command, "-1")
    assert refused.status == 2
    assert "--test-every -1: out of range; give 0 or more" in refused.err


def test_a_checkpoint_of_another_training_is_refused_until_restart(trtkp: Trtkp, work: Path) -> None:
    def interrupt(phase: str, done: int, total: int) -> None:
        if phase == "Finetune 2/2":
            raise KeyboardInterrupt

    options = PruneOptions(training=Training(finetune=Recipe(epochs=2, batch=30)))
    with pytest.raises(KeyboardInterrupt):
        prune("net.pt2", "p", method="vskp", options=options, data="data.npz", progress=interrupt)
    command = ("prune", "net.pt2", "-m", "vskp", "--ratio", "0.2", "--data", "data.npz", "--epochs", "1", "-o", "p")
    done = trtkp(*command)
    assert "is a checkpoint of another net, data, method or recipe" in done.message
    assert done.status == 2
    assert trtkp(*command, "--restart").status == 0


@pytest.mark.parametrize("options", ["-m vskp --allocation own.json", "-m soks --shapes ASK_4a"])
def test_settings_that_are_no_options_are_no_matter_to_a_build(trtkp: Trtkp, work: Path, options: str) -> None:
    """Layers' own settings, and those that others imply."""
    layers = {"3.weight": {"ratio": 0.25}, "7.weight": {"ratio": 0.5, "filter_group": 4}}
    Path("own.json").write_text(json.dumps({"method": "vskp", "layers": layers}))
    done = trtkp("prune", "net.pt2", *options.split(), "-o", "p")
    assert done.status == 0, done.err
    done = trtkp("build", "p", "-o", "b", "-b", "onnxruntime")
    assert done.status == 0, done.err
    totals = load_pruned("p").manifest.totals
    assert trtkp_load("b").manifest.totals.paper_index_bytes == totals.paper_index_bytes
    assert totals.paper_index_bytes is not None


def test_channels_are_tuned_for_as_long_as_was_asked(trtkp: Trtkp, work: Path) -> None:
    pytest.importorskip("torch_pruning", reason="package torch-pruning is not installed")
    command = ("prune", "net.pt2", "-m", "channels", "--ratio", "0.5", "--data", "data.npz", "--epochs", "2", "-o", "p")
    assert trtkp(*command).status == 0
    assert [row["stage"] for row in rows_of("p/log.csv")] == ["finetune"] * 2


def test_batch_normalisation_of_features(trtkp: Trtkp, work: Path) -> None:
    """Not of planes: it stays as it is when calls become modules."""
    pytest.importorskip("torch_pruning", reason="package torch-pruning is not installed")
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 3),
    ).eval()  # fmt: skip
    torch.export.save(export(net, (1, 8, 8)), "features.pt2")
    done = trtkp("prune", "features.pt2", "-m", "channels", "--ratio", "0.5", "-o", "p")
    assert done.status == 0, done.err
    assert load_model(load_pruned("p").model).parameters()["0.weight"].shape == (4, 1, 3, 3)


def test_an_onnx_file_is_pruned_one_shot(trtkp: Trtkp, folder: Path) -> None:
    assert trtkp("prune", "net.onnx", "--n", "2", "-o", "p").status == 0
    done = trtkp("build", "p", "-o", "b", "-b", "onnxruntime", "--json")
    assert done.status == 0, done.err
    assert {layer["density"] for layer in done.document["layers"]} == {1.0, 2 / 9}
    done = trtkp("prune", "net.onnx", "--data", "data.npz", "--epochs", "1", "-o", "p")
    assert done.status == 2
    assert "net.onnx" in done.message


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("-m vskp --epochs 2", "2 epochs of training need data; give --data"),
        ("--epochs 1 --data nowhere", "nowhere: no such data"),
        ("--epochs 1 --data classes.npz", "has labels 0..7, the model's classes are 0..2"),
        ("--epochs 1 --data wide.npz", "wide.npz: has samples of shape [1, 8, 9], the model takes [1, 8, 8]"),
        ("--epochs 1 --data nan.npz", "nan.npz: holds NaN or infinity"),
        ("-m dppnet --skip * --epochs 1 --data data.npz", "net.pt2: method dppnet finds no layer to prune"),
        ("--epochs -1 --data data.npz", "--epochs -1: out of range; give 0 or more"),
        ("--ratio 1.5", "--ratio 1.5: out of range; give 0 to below 1"),
        ("--data data.npz --tensorboard runs", "--tensorboard needs training"),
        ("-m vskp --regularise-epochs 2 --data data.npz", "method vskp has no option --regularise-epochs"),
        ("-m soks --ratio 0.99 --groups 1 --remove-filters", "soks would remove all filters of it"),
        ("--lr 0 --epochs 1 --data data.npz", "--lr 0: out of range; give more than 0"),
        ("--amp int8 --epochs 1 --data data.npz", "--amp int8: not known; use one of fp32, bf16, fp16"),
        ("--recipe no.yaml", "no.yaml: no such file"),
        ("--recipe bad.yaml", "bad.yaml: finetune: epoch is not known; use"),
        ("--recipe type.yaml", "type.yaml: setting finetune.epochs: 'many' is of the wrong type; give a whole number"),
        ("--allocation ratios.json", "ratios.json: not an allocation"),
    ],
)
def test_bad_input(trtkp: Trtkp, work: Path, options: str, words: str) -> None:
    x, y = np.random.default_rng(0).normal(size=(24, 1, 8, 8)).astype(np.float32), np.arange(24) % 8
    np.savez("classes.npz", x=x, y=y)
    np.savez("wide.npz", x=np.zeros((24, 1, 8, 9), np.float32), y=y)
    np.savez("nan.npz", x=x * np.nan, y=y % 3)
    Path("bad.yaml").write_text("finetune: {epoch: 3}\n")
    Path("type.yaml").write_text("finetune: {epochs: many}\n")
    Path("ratios.json").write_text('{"conv9": 0.5}')
    done = trtkp("prune", "net.pt2", "-o", "p", *options.split())
    assert words in done.message
    assert done.status == 2
    assert not Path("p").exists()


def test_a_loss_that_is_no_number(trtkp: Trtkp, work: Path) -> None:
    command = ("prune", "net.pt2", "-m", "vskp", "--data", "data.npz", "--epochs", "3", "-o", "p", "--batch", "30")
    done = trtkp(*command, "--lr", "1e30")
    assert done.status == 1
    assert "the loss became NaN or infinite in finetune" in done.message
    assert not Path("p").exists()


def test_what_is_pruned_is_not_pruned_again_and_checked(trtkp: Trtkp, work: Path) -> None:
    assert trtkp("prune", "net.pt2", "-o", "p").status == 0
    for options in (("--method", "kep"), ("--n", "2")):
        done = trtkp("build", "p", "-o", "b", *options)
        assert f"is pruned already, so {options[0]} has no effect" in done.message
    file = Path("p/model.pt2")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(IntegrityError, match="was changed since it was built"):
        load_pruned("p")
    assert trtkp("build", "p", "-o", "b").status == 2

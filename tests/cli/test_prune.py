"""``trtkp prune``: what it writes, what ``build`` makes of it, going on after an interruption, and bad input."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import trtkp.pruning.subject
import trtkp.pruning.writing
from examples.nets import export
from trtkp.bundle import load as trtkp_load
from trtkp.bundle.pruned import load_pruned
from trtkp.errors import InputError, IntegrityError, JobError
from trtkp.layer_table import named_graph
from trtkp.model import SourceModel, load_model
from trtkp.pipeline import BuildOptions, build
from trtkp.prune.registry import make_method
from trtkp.prune.train.recipe import Preprocessing, Recipe, Training, read_recipe
from trtkp.pruning import PruneOptions, prune, training_folder
from trtkp.verification import verify

from .conftest import Trtkp


def small_net() -> nn.Sequential:
    """Three convolutions, with all that training switches."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1),
        nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``net.pt2`` and ``data.npz``, three classes of stripes."""
    folder = tmp_path_factory.mktemp("prune")
    torch.export.save(export(small_net(), (1, 8, 8)), folder / "net.pt2")
    rng = np.random.default_rng(0)
    labels = np.arange(160) % 3
    images = rng.normal(0, 0.3, (160, 1, 8, 8)).astype(np.float32)
    images[labels == 0, :, ::2] += 1
    images[labels == 1, :, :, ::2] += 1
    np.savez(folder / "data.npz", x=images[:120], y=labels[:120], x_test=images[120:], y_test=labels[120:])
    return folder


def rows_of(file: str) -> list[dict[str, str]]:
    with Path(file).open(newline="") as log:
        return list(csv.DictReader(log))


_GRAPHS: dict[str, Any] = {}


def graph_once(source: SourceModel) -> Any:
    """The export to ONNX takes seconds, and is the same for every test here."""
    if source.format == "onnx":
        return named_graph(source)
    if source.sha256 not in _GRAPHS:
        _GRAPHS[source.sha256] = named_graph(source)
    return _GRAPHS[source.sha256]


@pytest.fixture
def work(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy; it is the current folder."""
    copy = shutil.copytree(source, tmp_path / "work")
    monkeypatch.chdir(copy)
    monkeypatch.setattr(trtkp.pruning.subject, "named_graph", graph_once)
    return copy


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


@pytest.mark.parametrize(
    ("method", "stage"),
    [
        ("kep", "Regularise"), ("soks", "Regularise"), ("pptkp", "Regularise"), ("soks", "Finetune"),
        ("dppnet", "Prepare"), ("dppnet", "Regularise"), ("dppnet", "Finetune"), ("channels", "Finetune"),
    ],
)  # fmt: skip
def test_an_interrupted_pruning_goes_on(work: Path, method: str, stage: str) -> None:
    if method == "channels":
        pytest.importorskip("torch_pruning", reason="package torch-pruning is not installed")
    training = Training(
        data=Preprocessing(flip=True, pad=1),
        prepare=Recipe(epochs=3 if method == "dppnet" else 0, batch=30, lr=0.1),
        regularise=Recipe(epochs=3, batch=30, lr=0.1),
        finetune=Recipe(epochs=3, batch=30, lr=0.1, distil=0.5),
    )
    options = PruneOptions(training=training)
    settings = {"kep": {}, "dppnet": {"alpha": 0.004}}.get(method, {"ratio": 0.5})

    class StopError(Exception):
        pass

    def stop(phase: str, done: int, total: int) -> None:
        if phase == f"{stage} 3/3" and done == 2:
            raise StopError

    whole = prune("net.pt2", "whole", method=method, options=options, data="data.npz", **settings)
    with pytest.raises(StopError):
        prune("net.pt2", "p", method=method, options=options, data="data.npz", progress=stop, **settings)
    assert not Path("p").exists()
    phases: list[str] = []
    again = prune("net.pt2", "p", method=method, options=options, data="data.npz",
                  progress=lambda phase, *_: phases.append(phase), **settings)  # fmt: skip
    assert phases[0] == f"{stage} 3/3"
    one, other = (load_model(pruned.model).parameters() for pruned in (whole, again))
    for name in one:
        assert np.array_equal(one[name], other[name]), name
    assert whole.manifest.accuracy == again.manifest.accuracy
    for part in ("report", "left_dense", "warnings"):
        assert getattr(whole.manifest, part) == getattr(again.manifest, part)
    rows = [[row["stage"], row["epoch"], row["loss"]] for row in rows_of("p/log.csv")]
    assert rows == [[row["stage"], row["epoch"], row["loss"]] for row in rows_of("whole/log.csv")]


_THREE_STAGES = """
method: dppnet
settings: {alpha: 0.035}
prepare: {epochs: 2, batch: 30, lr: 0.1}
regularise: {epochs: 12, batch: 30, lr: 0.03, momentum: 0.0, schedule: constant}
finetune: {epochs: 4, batch: 30, lr: 0.1}
"""


@pytest.fixture(scope="module")
def dynamic(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``trtkp prune`` makes of the net with dynamic patterns: the directory ``dynamic``."""
    folder = shutil.copytree(source, tmp_path_factory.mktemp("dynamic") / "work")
    (folder / "three.yaml").write_text(_THREE_STAGES)
    net = small_net()
    with torch.no_grad():
        for i in (3, 7):  # positions that differ: all of a plane would stay or go at once
            net[i].weight.mul_(torch.tensor([[0.2, 1, 0.2], [1, 2, 1], [0.2, 1, 0.2]]))
    torch.export.save(export(net, (1, 8, 8)), folder / "net.pt2")
    chosen = read_recipe(folder / "three.yaml")
    prune(folder / "net.pt2", folder / "dynamic", method=make_method("dppnet", **chosen.settings),
          options=PruneOptions(training=chosen), data=folder / "data.npz")  # fmt: skip
    return folder


def test_dynamic_patterns_are_learnt_in_three_stages(dynamic: Path) -> None:
    pruned = load_pruned(dynamic / "dynamic")
    told = pruned.manifest
    assert told.accuracy is not None
    assert told.accuracy["pruned"] > 0.8 > told.accuracy["dense"]
    stages = [row["stage"] for row in rows_of(str(dynamic / "dynamic" / "log.csv"))]
    assert stages == ["prepare"] * 2 + ["regularise"] * 12 + ["finetune"] * 4
    weights = load_model(pruned.model).parameters()
    taps = {name: index.mask()[0, 0].sum() for name, index in pruned.index_sets.items()}
    assert set(taps) == {"3.weight", "7.weight"}
    assert any(count < 9 for count in taps.values())
    for layer in told.layers:
        assert weights[layer.name].shape == (4, 8, 8 * taps[layer.name])
        assert layer.retained_params == weights[layer.name].size
        assert layer.paper_index_bytes == 5  # 4 patterns of 9 bits
    attention = 2 * (3 * 8 + 32 * 3 + 32)
    dense = told.totals.dense_params - 2 * 576
    assert told.totals.retained_params == dense + sum(layer.retained_params for layer in told.layers) + attention + 16
    removed = told.report["removed"]
    kept = sum(576 * 64 * count / 9 for count in taps.values())
    assert removed["layers"] == pytest.approx(1 - kept / (2 * 576 * 64))
    assert removed["net_with_overhead"] < removed["net"] < removed["layers"]


def test_a_dynamic_layer_that_keeps_every_position_is_recorded_once(trtkp: Trtkp, work: Path) -> None:
    """It is one of the layers that were converted: none of them is left dense."""
    done = trtkp("prune", "net.pt2", "-m", "dppnet", "--alpha", "0", "--data", "data.npz", "--epochs", "1", "-o", "p",
                 "--json")  # fmt: skip
    assert done.status == 0, done.err
    assert {layer["name"]: layer["density"] for layer in done.document["layers"]} == {"3.weight": 1, "7.weight": 1}
    assert done.document["left_dense"] == {"0.weight": "stem"}
    assert "method dppnet pruned no layer" in done.document["warnings"]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_dynamic_patterns_are_built_and_exact_for_any_batch(dynamic: Path, tmp_path: Path, precision: str) -> None:
    bundle = build(
        dynamic / "dynamic", tmp_path / "b", options=BuildOptions(backend="onnxruntime", precision=precision)
    )
    model, engine = (onnx.load(bundle.path / name) for name in ("model.onnx", "engine.onnx"))
    assert [node.op_type for node in model.graph.node].count("DynamicPatternConvRelu") == 2  # with their BatchNorm
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    assert {node.domain for node in engine.graph.node} == {""}
    source = load_model(load_pruned(dynamic / "dynamic").model)
    tolerance = 1e-5 if precision == "fp32" else 5e-3
    for file in ("model.onnx", "engine.onnx"):
        session = onnxruntime.InferenceSession(bundle.path / file, providers=["CPUExecutionProvider"])
        for batch in (1, 5):
            x = np.random.default_rng(batch).normal(size=(batch, 1, 8, 8)).astype(np.float32)
            (want,) = source.run({source.inputs[0].name: x}).values()
            (got,) = session.run(None, {session.get_inputs()[0].name: x})
            assert np.linalg.norm(got - want) <= tolerance * np.linalg.norm(want)
    assert verify(bundle.path).ok
    assert set(bundle.manifest.left_out) == {"3.weight", "7.weight"}
    assert "positions (DynamicPatternConv)" in bundle.manifest.left_out["3.weight"]
    assert bundle.manifest.totals.dense_macs == load_pruned(dynamic / "dynamic").manifest.totals.retained_macs


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_dynamic_patterns_can_be_trained_further(dynamic: Path, tmp_path: Path, precision: str) -> None:
    """The positions that are read stay; the layer that is pruned now has its zeros."""
    training = Training(finetune=Recipe(epochs=1, batch=30, lr=0.1, precision=precision))
    before = load_pruned(dynamic / "dynamic")
    options = PruneOptions(include=["0"], training=training)
    made = prune(before.model, tmp_path / "p", method="kep", n=4, options=options, data=dynamic / "data.npz")
    accuracy = made.manifest.accuracy
    assert accuracy is not None
    assert accuracy["dense"] > 0.8
    weights, trained = (load_model(one.model).parameters() for one in (before, made))
    assert np.array_equal(trained["0.weight"] != 0, made.index_sets["0.weight"].mask())
    for name in ("3.weight", "3.attention.attend.weight", "7.weight"):
        assert trained[name].shape == weights[name].shape
        assert not np.array_equal(trained[name], weights[name])


def test_tensorrt_rtx_builds_dynamic_patterns(dynamic: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    options = BuildOptions(backend="tensorrt-rtx", targets=["sm89"], precision="fp16")
    bundle = build(dynamic / "dynamic", tmp_path / "b", options=options)
    assert (bundle.path / "model.engine").stat().st_size > 0
    ((_, shapes),) = bundle.manifest.profile.items()
    assert shapes["max"][0] > shapes["min"][0]


def test_dynamic_patterns_need_training_and_pytorch(trtkp: Trtkp, work: Path, built: Path) -> None:
    done = trtkp("build", "net.pt2", "-m", "dppnet", "-o", "b")
    assert "--method dppnet learns its patterns; use trtkp prune with --data" in done.message
    assert done.status == 2
    done = trtkp("prune", "net.pt2", "-m", "dppnet", "-o", "p")
    assert "--method dppnet learns its patterns in training; give --data and --epochs" in done.message
    done = trtkp("prune", "net.pt2", "-m", "dppnet", "--alpha", "30", "--data", "data.npz", "--epochs", "3", "-o", "p")
    assert "every position of every pattern is gone" in done.message
    assert done.status == 2
    Path("p.yaml").write_text("prepare: {epochs: 1}\n")
    done = trtkp("prune", "net.pt2", "-m", "kep", "--recipe", "p.yaml", "--data", "data.npz", "-o", "p")
    assert "a stage prepare means nothing to method kep" in done.message
    done = trtkp("prune", str(built / "net.onnx"), "-m", "dppnet", "--data", "data.npz", "--epochs", "1", "-o", "p")
    assert done.status == 2
    assert not Path("p").exists()


def test_accuracies_in_the_log_are_as_rare_as_asked(trtkp: Trtkp, work: Path) -> None:
    command = ["prune", "net.pt2", "-m", "vskp", "--data", "data.npz", "--epochs", "2", "-o", "p", "--test-every"]
    assert trtkp(*command, "2").status == 0
    assert [bool(row["test_accuracy"]) for row in rows_of("p/log.csv")] == [False, True]
    refused = trtkp(*command, "-1")
    assert refused.status == 2
    assert "--test-every -1: a number of epochs" in refused.err


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


@pytest.mark.parametrize("method", ["dppnet", "channels"])
def test_sizes_that_no_other_net_can_be_exported_for_are_refused_before_anything_is_trained(
    work: Path, method: str
) -> None:
    """Multiples of four: the size is no symbol of its own."""
    torch.export.save(export(small_net(), (1, 8, 8), size_step=4), "sized.pt2")
    stage = Recipe(epochs=1, batch=30)
    towards = stage if method == "dppnet" else Recipe()
    options = PruneOptions(input_shape=["1x1x8x8"], training=Training(regularise=towards, finetune=stage))
    phases: list[str] = []
    with pytest.raises(InputError) as error:
        prune(
            "sized.pt2", "p", method=method, options=options, data="data.npz", progress=lambda *p: phases.append(p[0])
        )
    assert str(error.value).startswith("sized.pt2: an input has a size 4*")
    assert str(error.value).endswith("; export the model with a dynamic batch alone")
    assert phases == []
    assert not training_folder(Path("p")).exists()


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
        ("--epochs 1 --data classes.npz", "labels 0..7, the model has 3 classes"),
        ("--epochs 1 --data wide.npz", "wide.npz: has samples of shape [1, 8, 9], the model takes [1, 8, 8]"),
        ("--epochs 1 --data nan.npz", "nan.npz: holds NaN or infinity"),
        ("-m dppnet --skip * --epochs 1 --data data.npz", "net.pt2: method dppnet finds no layer to prune"),
        ("--epochs -1 --data data.npz", "-1 epochs"),
        ("--ratio 1.5", "--ratio 1.5: not a share"),
        ("-m vskp --regularise-epochs 2 --data data.npz", "--regularise-epochs means nothing to method vskp"),
        ("-m soks --ratio 0.99 --groups 1 --remove-filters", "soks would remove all filters of it"),
        ("--lr 0 --epochs 1 --data data.npz", "learning rate 0.0"),
        ("--amp int8 --epochs 1 --data data.npz", "training precision int8: not known"),
        ("--recipe no.yaml", "no.yaml: not a readable recipe"),
        ("--recipe bad.yaml", "bad.yaml: finetune: epoch means nothing; use"),
        ("--recipe type.yaml", "type.yaml: finetune.epochs: 'many' is no int"),
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
    assert "the loss is no number any more in finetune" in done.message
    assert not Path("p").exists()


def test_what_is_pruned_is_not_pruned_again_and_checked(trtkp: Trtkp, work: Path) -> None:
    assert trtkp("prune", "net.pt2", "-o", "p").status == 0
    for options in (("--method", "kep"), ("--n", "2")):
        done = trtkp("build", "p", "-o", "b", *options)
        assert f"{options[0]} means nothing to a model that is pruned already" in done.message
    file = Path("p/model.pt2")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(IntegrityError, match="was changed since it was built"):
        load_pruned("p")
    assert trtkp("build", "p", "-o", "b").status == 2


def test_a_failure_leaves_an_older_directory(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prune("net.pt2", "p", method="kep")
    before = (first.path / "manifest.json").read_bytes()

    def fail(*_: object) -> None:
        raise JobError("disk on fire")

    monkeypatch.setattr(trtkp.pruning.writing, "save_index_sets", fail)
    with pytest.raises(JobError, match="disk on fire"):
        prune("net.pt2", "p", method="kep", n=2)
    assert (work / "p" / "manifest.json").read_bytes() == before
    assert sorted(path.name for path in work.glob(".*")) == []


def test_fixed_batch_is_refused(work: Path) -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3)).eval()
    torch.export.save(export(net, (1, 8, 8), batch=(2, 2)), work / "fixed.pt2")
    options = PruneOptions(training=Training(finetune=Recipe(epochs=1)))
    with pytest.raises(InputError, match="takes batches of 2 only"):
        prune("fixed.pt2", "p", options=options, data="data.npz")

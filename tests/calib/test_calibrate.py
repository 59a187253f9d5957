"""Whole calibrations: bundles, models, the commands, and that the same input gives the same bytes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

import trtkp
from examples.nets.digits import DigitsCnn
from tests.models import save_program
from trtkp.bundle.calibration import load_calibration, scale_of
from trtkp.cli import main
from trtkp.errors import InputError
from trtkp.graph.ops import SCALES
from trtkp.graph.passes.pack import packed_nodes
from trtkp.machine.packages import importable
from trtkp.pipeline.options import BuildOptions
from trtkp.verification.bundle import dense_graph

needs_rtx = pytest.mark.skipif(not importable("tensorrt_rtx"), reason="package tensorrt_rtx is not installed")
OPTIONS = BuildOptions(backend="onnxruntime", threads=1, lowering="box")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``net.pt2``, ``data.npz`` labelled by the net itself, and the fp32 bundle ``kep``; not to be changed."""
    path = tmp_path_factory.mktemp("calib")
    torch.manual_seed(0)
    net = DigitsCnn(8)
    save_program(net, path / "net.pt2", (1, 16, 16))
    x = np.random.default_rng(0).standard_normal((48, 1, 16, 16)).astype(np.float32)
    with torch.no_grad():
        y = net(torch.from_numpy(x)).argmax(1).numpy()
    np.savez(path / "data.npz", x=x, y=y)
    trtkp.build(path / "net.pt2", path / "kep", method="kep", n=6, share="per-layer", options=OPTIONS)
    return path


@pytest.fixture(scope="module")
def int8(folder: Path) -> trtkp.Bundle:
    return trtkp.calibrate(folder / "kep", folder / "int8", data=folder / "data.npz", options=OPTIONS)


def statuses(bundle: trtkp.Bundle) -> dict[str, str]:
    return {check.artefact: check.status for check in trtkp.verify(bundle).checks}


def test_the_bundle_is_whole_and_verified(folder: Path, int8: trtkp.Bundle) -> None:
    assert trtkp.load(int8.path).manifest == int8.manifest
    assert set(statuses(int8).values()) == {"verified"}
    record = int8.manifest.quantisation
    assert record is not None
    assert (int8.manifest.precision, record.fallback, record.form) == ("int8", "fp32", "onnxruntime")
    assert set(record.layers) == {f"{name}.0.weight" for name in ("stem", "down", "body1", "body2", "head")} | {
        "fc.weight"
    }
    assert all(choice.error is not None and choice.error < 0.2 for choice in record.layers.values())
    assert record.floating is not None
    assert record.quantised is not None
    old = trtkp.load(folder / "kep").manifest
    assert int8.manifest.layers == old.layers
    assert int8.manifest.files["engine.onnx"].bytes < 0.6 * old.files["engine.onnx"].bytes
    onnx.checker.check_model(onnx.load(int8.file("engine.onnx")), full_check=True)
    assert trtkp.bench([folder / "kep", int8], runs=3, warmup=1)[1].precision == "int8"


def test_pruned_weights_are_exactly_zero(int8: trtkp.Bundle) -> None:
    dense = dense_graph(ir.load(int8.file("model.onnx")))
    zeros = {
        shape: np.count_nonzero(array == 0)
        for value in dense.graph.initializers.values()
        if value.const_value is not None and (array := value.const_value.numpy()).ndim == 4
        for shape in [array.shape]
    }
    levels = {
        array.shape: np.count_nonzero(array == 0)
        for tensor in onnx.load(int8.file("engine.onnx")).graph.initializer
        if (array := onnx.numpy_helper.to_array(tensor)).dtype == np.int8 and array.ndim == 4
    }
    for name, index in int8.index_sets.items():
        removed = int((~index.mask()).sum())
        assert zeros[index.shape] >= removed, name
    boxes = [shape for shape in levels if shape in zeros]
    assert boxes
    assert all(levels[shape] > 0 or zeros[shape] == 0 for shape in boxes)


def test_scales_stand_on_the_packed_operators(folder: Path, int8: trtkp.Bundle) -> None:
    packed = ir.load(int8.file("model.onnx"))
    calibration = load_calibration(int8.path)
    nodes = packed_nodes(packed)
    assert nodes
    for node in nodes:
        filters = node.attributes["weight_shape"].as_ints()[0]
        assert node.attributes["input_scale"].as_float() > 0
        assert len(node.attributes["weight_scale"].as_floats()) == filters
        function = packed.functions[node.op_identifier()]
        assert set(SCALES) & set(node.attributes) <= set(function.attributes)
    body2 = next(node for node in nodes if node.name and "residual_scale" in node.attributes)
    assert "Add" in body2.op_type
    by_input = {node.inputs[0].name: node for node in nodes if node.inputs[0] is not None}
    for name, node in by_input.items():
        assert node.attributes["input_scale"].as_float() == pytest.approx(calibration.tensors[str(name)].scale)
    # they change nothing in floating point
    before = ir.load(folder / "kep" / "model.onnx")
    feed = np.random.default_rng(1).standard_normal((2, 1, 16, 16)).astype(np.float32)
    outputs = []
    for model in (before, packed):
        from trtkp.engine.onnxruntime import OrtRunner

        with OrtRunner(ir.to_proto(model)) as runner:
            outputs.append(runner.run({"x": feed})["linear"])
    np.testing.assert_array_equal(*outputs)


def test_the_same_input_gives_the_same_bytes(folder: Path, int8: trtkp.Bundle, tmp_path: Path) -> None:
    again = trtkp.calibrate(folder / "kep", tmp_path / "again", data=folder / "data.npz", options=OPTIONS)
    for name in ("calibration.json", "samples.safetensors", "engine.onnx", "model.onnx"):
        assert again.file(name).read_bytes() == int8.file(name).read_bytes(), name


def test_a_calibration_is_taken_again_edited(folder: Path, int8: trtkp.Bundle, tmp_path: Path) -> None:
    document = json.loads(int8.file("calibration.json").read_text())
    document["layers"]["head.0.weight"]["precision"] = "fp32"
    document["tensors"]["x"]["amax"] = 3.0
    del document["tensors"]["x"]["scale"]
    file = tmp_path / "edited.json"
    file.write_text(json.dumps(document))
    made = trtkp.calibrate(folder / "kep", tmp_path / "b", calibration_file=file, options=OPTIONS)
    assert load_calibration(made.path).tensors["x"].scale == pytest.approx(3 / 127)
    stored = [tensor.name for tensor in onnx.load(made.file("engine.onnx")).graph.initializer]
    assert not any("head" in name and name.endswith(".int8") for name in stored)
    assert any("body1" in name and name.endswith(".int8") for name in stored)
    built = trtkp.build(
        folder / "net.pt2", tmp_path / "c", method="kep", n=6, share="per-layer",
        options=BuildOptions(backend="onnxruntime", threads=1, precision="int8", calibration_file=file),
    )  # fmt: skip
    assert {layer.lowering for layer in built.manifest.layers if layer.kind != "dense"} == {"box"}


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda d: d["tensors"]["x"].update(scale=0.5), "scale 0.5 is not amax / 127 for amax"),
        (lambda d: d["tensors"]["x"].update(amax=-1), "tensors.x.amax"),
        (lambda d: d["layers"].update(other=d["layers"]["fc.weight"]), "it names other, which the model lacks"),
        (lambda d: d["layers"].pop("fc.weight"), "it lacks the layer fc.weight"),
        (lambda d: d["tensors"].pop("x"), "has no range for tensor x"),
        (lambda d: d.update(version=9), "is not a valid calibration: version"),
        (
            lambda d: d["layers"]["fc.weight"].update(precision="int4"),
            "is not a valid calibration: layers.fc.weight.precision",
        ),
    ],
)
def test_a_wrong_calibration_file(folder: Path, int8: trtkp.Bundle, tmp_path: Path, edit: Any, words: str) -> None:
    document = json.loads(int8.file("calibration.json").read_text())
    edit(document)
    (tmp_path / "c.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=words):
        trtkp.calibrate(folder / "kep", tmp_path / "b", calibration_file=tmp_path / "c.json", options=OPTIONS)
    assert not (tmp_path / "b").exists()


def test_layers_go_back_until_the_drop_holds(folder: Path, tmp_path: Path) -> None:
    """Ranges that clip nearly everything: no drop is only held by sending layers back."""
    options = trtkp.CalibrationOptions(calibrator="percentile", percentile=70.0, max_drop=0.0)
    with np.load(folder / "data.npz") as archive:
        np.savez(tmp_path / "x.npz", x=archive["x"])
    made = trtkp.calibrate(
        folder / "kep", tmp_path / "b", data=tmp_path / "x.npz", calibration=options, options=OPTIONS
    )
    record = made.manifest.quantisation
    assert record is not None
    scores = record.scores
    assert scores.drop is not None
    assert scores.drop <= 0
    assert scores.all_quantised is not None
    assert scores.floating is not None
    assert scores.all_quantised < scores.floating
    back = {name: choice for name, choice in record.layers.items() if choice.precision == "fp32"}
    kept = {name: choice for name, choice in record.layers.items() if choice.precision == "int8"}
    assert back
    assert all(choice.reason and "left in floating point" in choice.reason for choice in back.values())
    least = min(choice.error or 0 for choice in back.values())
    assert all((choice.error or 0) <= least for choice in kept.values())


def test_without_labels_decisions_count(folder: Path, tmp_path: Path) -> None:
    with np.load(folder / "data.npz") as archive:
        np.savez(tmp_path / "x.npz", x=archive["x"])
    made = trtkp.calibrate(folder / "kep", tmp_path / "b", data=tmp_path / "x.npz", options=OPTIONS)
    assert made.manifest.quantisation is not None
    assert made.manifest.quantisation.scores.measure == "agreement"
    assert made.manifest.quantisation.scores.floating == 1


def test_one_sample_and_copies_of_it_are_noted(folder: Path, tmp_path: Path) -> None:
    with np.load(folder / "data.npz") as archive:
        x, y = archive["x"][:1], archive["y"][:1]
    for count, words in ((1, "calibrated on one sample"), (5, "calibrated on copies of one sample")):
        np.savez(tmp_path / "x.npz", x=np.repeat(x, count, 0), y=np.repeat(y, count, 0))
        made = trtkp.calibrate(folder / "kep", tmp_path / "b", data=tmp_path / "x.npz", options=OPTIONS)
        assert any(words in warning for warning in made.manifest.warnings)


def test_an_interrupted_calibration_goes_on(
    folder: Path, int8: trtkp.Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trtkp.data import samples as module

    real = module.Samples.batches
    monkeypatch.setattr("trtkp.calib.ranges._STATE_EVERY", 2)

    def dying(self: Any, limits: Any) -> Iterator[Any]:
        for i, item in enumerate(real(self, limits)):
            if i == 5 and dying_now:
                raise KeyboardInterrupt
            yield item

    dying_now = False
    monkeypatch.setattr(module.Samples, "batches", dying)
    state = tmp_path / ".b.calibrating.npz"

    def progress(phase: str, done: int, total: int) -> None:
        nonlocal dying_now
        dying_now = phase == "Calibrating"

    with pytest.raises(KeyboardInterrupt):
        trtkp.calibrate(folder / "kep", tmp_path / "b", data=folder / "data.npz", options=OPTIONS, progress=progress)
    assert state.is_file()
    assert not (tmp_path / "b").exists()
    dying_now = False
    steps = []
    made = trtkp.calibrate(
        folder / "kep", tmp_path / "b", data=folder / "data.npz", options=OPTIONS,
        progress=lambda phase, done, total: steps.append((phase, done)),
    )  # fmt: skip
    assert min(done for phase, done in steps if phase == "Calibrating") == 4
    assert not state.exists()
    assert made.file("calibration.json").read_bytes() == int8.file("calibration.json").read_bytes()


@pytest.mark.parametrize("lowering", ["dense", "rectangles", "taps"])
def test_every_form_of_a_stripe_layer(folder: Path, tmp_path: Path, lowering: str) -> None:
    made = trtkp.build(
        folder / "net.pt2", tmp_path / "b", method="kep", n=4, share="per-layer", data=folder / "data.npz",
        options=BuildOptions(backend="onnxruntime", threads=1, lowering=lowering, precision="int8"),
    )  # fmt: skip
    assert set(statuses(made).values()) == {"verified"}
    assert made.manifest.quantisation is not None
    assert made.manifest.quantisation.scores.error < 0.2


@needs_rtx
@pytest.mark.parametrize(("kind", "fallback"), [("int8", "fp16"), ("int8", "fp32"), ("fp8", "fp16")])
def test_tensorrt_rtx(folder: Path, tmp_path: Path, kind: Any, fallback: Any) -> None:
    made = trtkp.calibrate(
        folder / "net.pt2", tmp_path / "b", data=folder / "data.npz", kind=kind,
        calibration=trtkp.CalibrationOptions(fallback=fallback, max_drop=100),
        options=BuildOptions(backend="tensorrt-rtx"),
    )  # fmt: skip
    record = made.manifest.quantisation
    assert record is not None
    assert (record.form, record.fallback) == ("explicit", fallback)
    assert statuses(made) == {
        "dense masked ONNX": "verified", "model.onnx": "verified", "engine.onnx": "verified", "engine": "not run",
    }  # fmt: skip
    graph = onnx.load(made.file("engine.onnx")).graph
    types = {tensor.data_type for tensor in graph.initializer}
    assert (onnx.TensorProto.INT8 if kind == "int8" else onnx.TensorProto.FLOAT8E4M3FN) in types
    assert (onnx.TensorProto.FLOAT16 in types) == (fallback == "fp16")
    assert ("sm80" in made.manifest.targets) == (kind == "int8")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("calibrate kep -o b", "--precision int8 needs samples of real inputs for calibration; give --data"),
        ("calibrate kep --data data.npz", "Missing option '--output' / '-o'."),
        ("calibrate none --data data.npz -o b", "none: no such file"),
        ("calibrate kep --data none.npz -o b", "none.npz: no such data"),
        ("calibrate kep --data data.npz -o b -p fp16", "--precision fp16: not known; use int8 or fp8"),
        ("calibrate kep --data data.npz -o b -p fp8", "--precision fp8: onnxruntime does not compute in FP8"),
        ("calibrate kep --data data.npz -o b --calibrator best", "--calibrator best: not known; use one of min-max"),
        (
            "calibrate kep --data data.npz -o b --percentile 0",
            "--percentile 0: out of range; give more than 0 and at most 100",
        ),
        ("calibrate kep --data data.npz -o b --samples 0", "--samples 0: out of range; give 1 or more"),
        ("calibrate kep --data data.npz -o b --max-drop -1", "--max-drop -1: out of range; give 0 or more"),
        ("calibrate kep --data data.npz -o b --fallback int4", "--fallback int4: not known; use fp32 or fp16"),
        ("calibrate kep --calibration none.json -o b", "none.json: no such file; write one with trtkp calibrate"),
        ("calibrate int8 --data data.npz -o b", "is a bundle in int8, but ranges are measured in fp32"),
        ("calibrate kep --data data.npz -o b --mean 1,x", "--mean 1,x: not numbers separated by commas"),
        ("build net.pt2 -b onnxruntime -p int8 -o b", "--precision int8 needs samples of real inputs"),
        ("build net.pt2 -b onnxruntime --calibration c.json -o b", "--calibration has no effect with --precision fp32"),
        ("build net.pt2 -b tensorrt-rtx --target sm86 -p fp8 --data data.npz -o b", "sm86 does not compute in FP8"),
    ],
)
def test_errors_are_one_line(
    folder: Path,
    int8: trtkp.Bundle,
    arguments: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    assert main(arguments.split()) in (1, 2)
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.count("\n") == 1
    assert not (folder / "b").exists()


def test_commands(folder: Path, int8: trtkp.Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(folder / "kep", tmp_path / "kep")
    target = str(tmp_path / "b")
    assert main(["calibrate", str(tmp_path / "kep"), "--data", str(folder / "data.npz"), "-o", target, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["quantisation"]["layers"]["fc.weight"]["precision"] == "int8"
    assert main(["inspect", target]) == 0
    shown = capsys.readouterr().out
    assert "6 of 6 layers, the rest fp32; ranges by min-max" in shown
    assert "head.0.weight" in shown
    assert main(["verify", target, "--model", str(folder / "net.pt2"), "--json"]) == 0
    verified = json.loads(capsys.readouterr().out)
    assert verified["scores"]["measure"] == "accuracy"
    assert verified["checks"][2]["tolerance"] == 0.5
    assert verified["checks"][1]["tolerance"] == 1e-5
    assert main(["verify", target, "--tolerance", "1e-6"]) == 1
    assert main(["bench", target, "--runs", "2"]) == 0


def test_scale_of() -> None:
    assert scale_of(127.0) == 1.0
    assert scale_of(0.0) == 1.0
    assert scale_of(1.0) == float(np.float32(1) / np.float32(127))

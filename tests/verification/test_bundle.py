"""What ``verify`` says, and that it finds what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import trtkp
from examples.nets import export
from examples.nets.digits import DigitsCnn
from tests.models import save_program, settled, write_classifier
from trtkp.bundle.manifest import hash_line
from trtkp.cli import main
from trtkp.errors import InputError, IntegrityError
from trtkp.machine.gpu import find_gpus
from trtkp.machine.packages import importable
from trtkp.pipeline.options import BuildOptions
from trtkp.verification import bundle as bundle_check
from trtkp.verification.bundle import VerificationReport

needs_rtx = pytest.mark.skipif(not importable("tensorrt_rtx"), reason="package tensorrt_rtx is not installed")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source ``net.onnx`` and the bundle ``b``, not to be changed."""
    folder = tmp_path_factory.mktemp("built")
    write_classifier(folder / "net.onnx")
    trtkp.build(folder / "net.onnx", folder / "b", share="per-layer", options=BuildOptions(lowering="taps"))
    return folder


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    """The same, to change."""
    return shutil.copytree(built, tmp_path / "copy")


def statuses(report: VerificationReport) -> dict[str, str]:
    return {check.artefact: check.status for check in report.checks}


def reason(report: VerificationReport, artefact: str) -> str:
    return next(check.reason or "" for check in report.checks if check.artefact == artefact)


def forge(bundle: Path, name: str, content: bytes) -> None:
    """Exchange a file and make every hash right again."""
    (bundle / name).write_bytes(content)
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    manifest["files"][name] = {"sha256": sha256(content).hexdigest(), "bytes": len(content)}
    text = json.dumps(manifest).encode()
    (bundle / "manifest.json").write_bytes(text)
    (bundle / "manifest.sha256").write_bytes(hash_line(text))


def plant(bundle: Path, name: str, change: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.load(bundle / name)
    change(model)
    forge(bundle, name, model.SerializeToString())


def change_largest_weight(model: onnx.ModelProto, value: float = 3.0) -> None:
    tensor = max(model.graph.initializer, key=lambda tensor: np.prod(tensor.dims))
    array = numpy_helper.to_array(tensor).copy()
    array.flat[np.flatnonzero(array)[len(np.flatnonzero(array)) // 2]] = value
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def test_everything_in_order(built: Path) -> None:
    report = trtkp.verify(built / "b")
    assert report.ok
    assert list(statuses(report)) == ["dense masked ONNX", "model.onnx", "engine.onnx", "engine"]
    assert set(statuses(report).values()) == {"verified"}
    source = report.checks[0]
    assert source.against == "source ONNX"
    assert source.tolerance == 1e-5
    assert set(source.outputs) == {"y"}
    assert report.hint is None
    assert "engine.onnx: verified against dense masked ONNX, output y: relative error" in report.checks[2].summary


@pytest.mark.parametrize("name", ["engine.onnx", "model.onnx"])
def test_one_wrong_weight_is_found(copy: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    plant(copy / "b", name, change_largest_weight)
    report = trtkp.verify(copy / "b")
    assert not report.ok
    found = statuses(report)
    if name == "engine.onnx":
        assert found == {
            "dense masked ONNX": "verified", "model.onnx": "verified", "engine.onnx": "failed", "engine": "failed",
        }  # fmt: skip
    else:  # the reference of the graphs is made from it, and the source tells on it
        assert found["dense masked ONNX"] == "failed"
        assert found["engine.onnx"] == "failed"
    assert report.hint is None
    assert main(["verify", str(copy / "b")]) == 1
    out, err = capsys.readouterr()
    assert "FAILED" in out
    assert f"error: {copy / 'b'}: engine.onnx: failed against dense masked ONNX, output y: relative error" in err


def test_not_a_number_fails(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant(copy / "b", "engine.onnx", lambda model: change_largest_weight(model, float("nan")))
    assert statuses(trtkp.verify(copy / "b"))["engine.onnx"] == "failed"
    assert main(["verify", str(copy / "b"), "--json"]) == 1
    document = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert document["ok"] is False
    assert document["checks"][2]["outputs"]["y"]["relative"] == "nan"


def test_not_a_number_on_both_sides_fails_too(copy: Path) -> None:
    for name in ("engine.onnx", "model.onnx"):
        plant(copy / "b", name, lambda model: change_largest_weight(model, float("nan")))
    assert set(statuses(trtkp.verify(copy / "b")).values()) == {"failed"}


def test_graph_of_other_outputs(copy: Path) -> None:
    def rename(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.output[:] = ["z" if name == "y" else name for name in node.output]
        model.graph.output[0].name = "z"

    plant(copy / "b", "engine.onnx", rename)
    report = trtkp.verify(copy / "b")
    assert not report.ok
    assert reason(report, "engine.onnx") == "it has no output y"


def test_tampering_without_new_hashes_is_refused_first(copy: Path) -> None:
    (copy / "b" / "engine.onnx").write_bytes(b"\0")
    with pytest.raises(IntegrityError):
        trtkp.verify(copy / "b")


# --- where the source is ----------------------------------------------------------------------------------------------


def test_bundle_and_source_move_together(copy: Path) -> None:
    moved = copy.rename(copy.with_name("elsewhere"))
    assert set(statuses(trtkp.verify(moved / "b")).values()) == {"verified"}


def test_source_that_moved(copy: Path) -> None:
    (copy / "net.onnx").rename(copy / "moved.onnx")
    report = trtkp.verify(copy / "b")
    assert report.ok
    assert statuses(report)["dense masked ONNX"] == "not run"
    assert reason(report, "dense masked ONNX") == "the source model net.onnx does not exist; name it with --model"
    assert statuses(report)["engine"] == "verified"
    assert statuses(trtkp.verify(copy / "b", model=copy / "moved.onnx"))["dense masked ONNX"] == "verified"
    with pytest.raises(InputError, match="no such file"):
        trtkp.verify(copy / "b", model=copy / "net.onnx")


def test_another_model(copy: Path) -> None:
    other = write_classifier(copy / "other.onnx", seed=1)
    with pytest.raises(InputError, match="is not the model that this bundle was built from") as caught:
        trtkp.verify(copy / "b", model=other)
    assert caught.value.file == str(other)
    other.rename(copy / "net.onnx")
    report = trtkp.verify(copy / "b")
    assert reason(report, "dense masked ONNX") == "the source model net.onnx was changed since the build"
    assert report.ok


def test_source_that_cannot_be_read_any_more(copy: Path) -> None:
    (copy / "net.onnx").write_bytes(b"garbage")
    report = trtkp.verify(copy / "b")
    assert statuses(report)["dense masked ONNX"] == "not run"
    assert report.ok


def narrow_digits() -> torch.nn.Module:
    return DigitsCnn(8)


def test_state_dict_is_loaded_with_what_the_manifest_says(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(settled(narrow_digits(), (1, 16, 16)).state_dict(), tmp_path / "net.pt")
    options = BuildOptions(arch="tests.verification.test_bundle:narrow_digits", input_shape=("1x1x16x16",))
    report = trtkp.verify(trtkp.build(tmp_path / "net.pt", tmp_path / "b", options=options))
    assert set(statuses(report).values()) == {"verified"}
    assert report.checks[0].against == "PyTorch"


# --- options ----------------------------------------------------------------------------------------------------------


def test_inputs_depend_on_the_seed(built: Path) -> None:
    def errors(seed: int) -> list[dict[str, Any]]:
        return [check.outputs for check in trtkp.verify(built / "b", seed=seed).checks]

    assert errors(1) == errors(1)
    assert errors(1) != errors(2)
    with pytest.raises(InputError, match="--seed -1"):
        errors(-1)


def test_tolerance(built: Path) -> None:
    strict = trtkp.verify(built / "b", tolerance=1e-12)
    assert statuses(strict)["engine.onnx"] == "failed"
    assert not strict.ok
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="--tolerance"):
            trtkp.verify(built / "b", tolerance=bad)


def test_batches_within_the_profile(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    feeds = bundle_check.random_feeds

    def spy(specs: Any, shapes: Any, seed: int) -> Any:
        batches.append(shapes["image"][0])
        return feeds(specs, shapes, seed)

    monkeypatch.setattr(bundle_check, "random_feeds", spy)
    trtkp.verify(built / "b")
    assert batches == [1, 3]
    for low, high, expected in ((1, 2, [1, 2]), (5, 9, [5]), (2, 2, [2])):
        options = BuildOptions(min=(f"{low}x3x8x8",), opt=(f"{high}x3x8x8",), max=(f"{high}x3x8x8",))
        bundle = trtkp.build(built / "net.onnx", tmp_path / f"{low}", method="none", options=options)
        batches.clear()
        assert trtkp.verify(bundle).ok
        assert batches == expected


@needs_rtx
@pytest.mark.skipif(bool(find_gpus().gpus), reason="a GPU is here")
def test_engine_that_cannot_run_here(built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = trtkp.build(
        built / "net.onnx", tmp_path / "b", options=BuildOptions(backend="tensorrt-rtx", targets=("sm86",))
    )
    report = trtkp.verify(bundle)
    assert report.ok
    assert statuses(report)["engine"] == "not run"
    assert "GPU" in reason(report, "engine")
    assert not trtkp.verify(bundle, require_engine=True).ok
    assert main(["verify", str(bundle.path)]) == 0
    assert "engine: not run (" in capsys.readouterr().out
    assert main(["verify", str(bundle.path), "--require-engine"]) == 1
    _out, err = capsys.readouterr()
    assert err == f"error: {bundle.path}: the engine was not run, and --require-engine asks for it\n"
    assert main(["verify", str(bundle.path), "--require-engine", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False


def test_hint_where_rounding_alone_makes_the_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    path = save_program(narrow_digits(), tmp_path / "net.pt2", (1, 16, 16))
    bundle = trtkp.build(path, tmp_path / "b", options=BuildOptions(precision="fp16"))
    assert trtkp.verify(bundle).hint is None
    report = trtkp.verify(bundle, tolerance=1e-5)
    assert statuses(report) == {
        "dense masked ONNX": "failed", "model.onnx": "verified", "engine.onnx": "verified",
        "activations": "verified", "engine": "verified",
    }  # fmt: skip
    assert report.hint is not None
    assert main(["verify", str(bundle.path), "--tolerance", "1e-5"]) == 1
    out, _err = capsys.readouterr()
    assert "build with --precision fp32, or accept the error with --tolerance" in out
    accepted = float(report.hint.split()[-1])
    assert 1e-5 < accepted < 5e-3
    assert trtkp.verify(bundle, tolerance=accepted).ok
    full = trtkp.build(path, tmp_path / "c")
    assert trtkp.verify(full, tolerance=1e-12).hint is None


def test_fp16_that_would_overflow_on_a_gpu_fails(tmp_path: Path) -> None:
    model = narrow_digits()
    with torch.no_grad():
        model.stem[0].weight.mul_(1e5)  # and the next layer undoes it
        model.down[0].weight.mul_(1e-5)
    path = tmp_path / "net.pt2"
    torch.export.save(export(model.eval(), (1, 16, 16)), path)
    bundle = trtkp.build(path, tmp_path / "b", method="none", options=BuildOptions(precision="fp16"))
    assert any("fp16 ends at 65504" in warning for warning in bundle.manifest.warnings)
    report = trtkp.verify(bundle)
    assert statuses(report)["activations"] == "failed"
    assert "--precision fp32" in reason(report, "activations")
    full = trtkp.verify(trtkp.build(path, tmp_path / "c", method="none"))
    assert full.ok
    assert "activations" not in statuses(full)


def test_comparison_of_outputs() -> None:
    compare = bundle_check._compare
    ones, zeros = np.ones((2, 2), np.float32), np.zeros((2, 2), np.float32)
    assert compare("a", "b", [({"y": ones}, {"y": ones})], 1e-5).status == "verified"
    assert compare("a", "b", [({"y": zeros}, {"y": zeros})], 1e-5).outputs["y"].relative == 0
    assert compare("a", "b", [({"y": ones}, {"y": zeros})], 1e-5).status == "failed"
    infinite = np.full((2, 2), np.inf, np.float32)  # two graphs that overflow alike are not right
    assert compare("a", "b", [({"y": infinite}, {"y": infinite})], 1e-5).status == "failed"
    check = compare("a", "b", [({"y": ones}, {"y": ones}), ({"y": 1.5 * ones}, {"y": ones})], 1e-5)
    assert (check.status, check.outputs["y"].relative, check.outputs["y"].max_abs) == ("failed", 0.5, 0.5)
    check = compare("a", "b", [({"y": ones[:1]}, {"y": ones})], 1e-5)
    assert (check.status, check.reason) == ("failed", "output y has shape [1, 2], expected [2, 2]")
    bad = ones.copy()
    bad[0, 0] = np.nan
    check = compare("a", "b", [({"y": bad}, {"y": ones}), ({"y": 1.5 * ones}, {"y": ones})], 1.0)
    assert check.status == "failed"
    assert np.isnan(check.outputs["y"].relative)
    assert "nan" in check.summary
    check = compare("a", "b", [({"y": ones, "z": 2 * ones}, {"y": ones, "z": ones})], 1e-5)
    assert "output z" in check.summary

"""Whole comparisons, and what is refused."""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

import trtkp
from tests.models import write_classifier
from trtkp.comparison import Comparison
from trtkp.comparison.result import Ratio
from trtkp.comparison.subject import labels
from trtkp.comparison.table import csv_text
from trtkp.comparison.words import verdict
from trtkp.engine import NotRunnableError
from trtkp.errors import InputError, IntegrityError
from trtkp.machine.gpu import find_gpus
from trtkp.machine.processes import child_command, peak_bytes
from trtkp.pipeline.options import BuildOptions

from .conftest import ENGINES

Compared = Callable[..., Comparison]


def test_entries_are_in_order_and_complete(comparison: Comparison, folder: Path) -> None:
    assert [entry.label for entry in comparison.entries] == list(ENGINES)
    assert [entry.name for entry in comparison.entries] == [str(folder / name) for name in ENGINES]
    assert [entry.kind for entry in comparison.entries] == ["bundle"] * 4 + ["onnx"]
    assert [entry.precision for entry in comparison.entries] == ["fp32", "fp32", "fp32", "int8", None]
    assert comparison.batches == (1, 8)
    assert comparison.inputs == "all 21 samples of data.npz"
    for entry in comparison.entries:
        assert [latency.batch for latency in entry.latencies] == [1, 8]
        for latency in entry.latencies:
            assert latency.timing.runs == 10  # in five openings
            assert latency.throughput == pytest.approx(latency.batch / latency.timing.median_ms * 1e3)
            assert latency.speed_up.low <= latency.speed_up.high
        assert entry.threads == 1
        assert entry.notes == ()
        assert entry.memory is not None
        assert entry.memory.peak_bytes > entry.memory.libraries_bytes > 10_000_000
    assert comparison.baseline.difference is None
    assert {latency.speed_up for latency in comparison.baseline.latencies} == {Ratio(1, 1, 1)}


def test_costs_are_those_of_the_manifest(comparison: Comparison, folder: Path) -> None:
    for entry in comparison.entries[:4]:
        bundle, costs = trtkp.load(entry.name), entry.costs
        assert costs is not None
        totals = bundle.manifest.totals
        common = totals.model_dump(exclude={"as_in_paper"})
        assert {key: getattr(costs, key) for key in common} == common
        assert costs.density == pytest.approx(totals.retained_macs / totals.dense_macs)
        assert costs.bound == pytest.approx(totals.dense_macs / totals.retained_macs)
        assert entry.engine_bytes == (folder / entry.label / "engine.onnx").stat().st_size
    plain, dense = comparison.entries[4].costs, comparison.baseline.costs
    assert plain is not None
    assert dense is not None
    assert (plain.retained_params, plain.retained_macs) == (dense.dense_params, dense.dense_macs)


def test_outputs_and_accuracy(comparison: Comparison, folder: Path) -> None:
    with np.load(folder / "data.npz") as data:
        x, y = data["x"], data["y"]
    outputs = {}
    for entry in comparison.entries[:4]:
        with trtkp.load(entry.name) as bundle:  # batches that dense takes, 16 at most
            outputs[entry.label] = np.concatenate([bundle.run({"image": part})["y"] for part in (x[:10], x[10:])])
    for entry in comparison.entries[:4]:
        found, base = outputs[entry.label], outputs["dense"]
        assert entry.accuracy == np.mean(found.argmax(1) == y)
        if entry.difference is not None:
            apart = np.linalg.norm(found - base) / np.linalg.norm(base)
            # a few units of the last place of 8 bits where the batch makes another kernel round
            assert entry.difference.relative == pytest.approx(apart, rel=0.02 if entry.label == "int8" else 1e-4)
            assert entry.difference.top1_agreement == pytest.approx(np.mean(found.argmax(1) == base.argmax(1)))
            assert entry.difference.samples == len(x)
    plain = comparison.entries[4].difference
    assert plain is not None
    assert plain.relative < 1e-6


def test_document_and_csv(comparison: Comparison) -> None:
    document = json.loads(json.dumps(comparison.document()))
    assert document["entries"][1]["latencies"][0]["speed_up"].keys() == {"value", "low", "high"}
    assert "density_maps" not in document["entries"][1]
    rows = list(csv.DictReader(io.StringIO(csv_text(comparison))))
    assert [(row["engine"], row["batch"]) for row in rows] == [
        (entry.name, str(batch)) for entry in comparison.entries for batch in (1, 8)
    ]
    kep = comparison.entries[1]
    assert float(rows[2]["median_ms"]) == kep.latencies[0].timing.median_ms
    assert rows[0]["relative_difference"] == ""
    assert None not in rows[0]


def test_verdicts(comparison: Comparison) -> None:
    text = verdict(comparison, comparison.entries[1])
    assert text.startswith("kep against dense: at batch 1 ")
    assert "46.1% of the MACs remain, which would allow 2.17x" in text
    assert verdict(comparison, comparison.entries[4]).count("MACs") == 0


@pytest.mark.parametrize("label", ["dense", "kep", "vskp", "int8"])
def test_the_command_builds_the_same(
    comparison: Comparison, label: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trtkp.cli import main

    entry = comparison.entries[ENGINES.index(label)]
    assert entry.command is not None
    words = shlex.split(entry.command)
    assert words[0] == "trtkp"
    words[-1] = str(tmp_path / "again")
    assert main(words[1:]) == 0
    before, after = trtkp.load(entry.name), trtkp.load(tmp_path / "again")
    assert after.manifest.settings == before.manifest.settings
    assert after.manifest.profile == before.manifest.profile
    assert after.manifest.precision == before.manifest.precision
    for name, index in before.index_sets.items():
        np.testing.assert_array_equal(after.index_sets[name].mask(), index.mask())


def test_inputs_without_data(compared: Compared) -> None:
    assert compared("dense", "kep").batches == (4,)  # the baseline's usual one
    assert compared("dense", "kep").inputs == "standard-normal random inputs, seed 0"
    quantised = compared("dense", "int8", seed=3)
    assert quantised.inputs == "samples that int8 was calibrated with"
    assert quantised.entries[1].accuracy is None
    plain = compared("net.onnx", "kep")
    assert plain.batches == (8,)  # what the bundle says
    assert all("switched off" in entry.notes[0] for entry in plain.entries)


def test_a_quantised_engine_is_compared_within_its_range(compared: Compared) -> None:
    """Its distance on its own samples is that of 8 bits, not of clipped random inputs."""
    found = compared("kep", "int8").entries[1].difference
    assert found is not None
    assert found.relative < 0.05


def test_unlabelled_images(compared: Compared, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(1).standard_normal((5, 3, 8, 8), np.float32))
    found = compared("dense", "kep", data=tmp_path / "x.npz")
    assert found.inputs == "all 5 samples of x.npz"
    assert found.entries[1].accuracy is None
    assert found.entries[1].difference is not None
    assert found.entries[1].difference.samples == 5


def test_labels_are_the_shortest_that_differ() -> None:
    assert labels([Path("a/x"), Path("b/x"), Path("y")]) == ["a/x", "b/x", "y"]
    assert labels([Path("runs/a"), Path("runs/b")]) == ["a", "b"]


def test_refusals(compared: Compared, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one engine alone cannot be compared; name two or more"):
        compared("dense")
    with pytest.raises(InputError, match="nothing to compare; name two or more"):
        compared()
    with pytest.raises(InputError, match="dense: is given twice"):
        compared("dense", "kep", "../" + folder.name + "/dense")
    with pytest.raises(InputError, match="absent: no such bundle"):
        compared("dense", "absent")
    with pytest.raises(InputError, match=r"dense: batch 17 is outside 1\.\.16, the range of input image; choose"):
        compared("kep", "dense", batches=(1, 17))
    for batches in ((0,), (8, -1)):
        with pytest.raises(InputError, match=r"--batch .*: out of range; give 1 or more"):
            compared("dense", "kep", batches=batches)
    with pytest.raises(InputError, match="--batch 1,1: one batch size is named twice"):
        compared("dense", "kep", batches=(1, 1))
    for options in ({"openings": 0}, {"runs": 0}, {"warmup": -1}, {"seed": -1}, {"threads": 0}):
        with pytest.raises(InputError, match=f"--{next(iter(options))} "):
            compared("dense", "kep", **options)
    with pytest.raises(InputError, match="no such data"):
        compared("dense", "kep", data=tmp_path / "absent.npz")
    np.savez(tmp_path / "wide.npz", x=np.random.default_rng(0).random((4, 3, 9, 9), np.float32))
    with pytest.raises(InputError, match=r"samples of shape \[3, 9, 9\], the model takes \[3, 8, 8\]"):
        compared("dense", "kep", data=tmp_path / "wide.npz")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(InputError, match=r"text\.onnx: is no model format"):
        compared("dense", tmp_path / "text.onnx")
    (tmp_path / "bad.engine").write_text("hello")
    with pytest.raises(InputError, match=r"bad\.engine: is not a TensorRT engine"):
        compared("dense", tmp_path / "bad.engine")


def test_engines_of_other_models(compared: Compared, folder: Path, tmp_path: Path) -> None:
    other = write_classifier(tmp_path / "classes.onnx", classes=6)
    with pytest.raises(
        InputError, match=r"classes\.onnx: output y has shape \[4, 6\], but the baseline's has \[4, 5\]"
    ):
        compared("dense", other)
    grey = write_classifier(tmp_path / "grey.onnx", (1, 4))
    with pytest.raises(
        InputError, match=r"input image: no size of dimension 1 fits all engines: .*dense 3\.\.3, .*1\.\.1"
    ):
        compared("dense", grey)
    model = onnx.load(folder / "net.onnx")
    model.graph.input[0].name = model.graph.node[0].input[0] = "pixels"
    onnx.save(model, tmp_path / "renamed.onnx")
    with pytest.raises(InputError, match=r"has inputs pixels float32\[N, 3, 8, 8\], the baseline image float32"):
        compared("dense", tmp_path / "renamed.onnx")
    half = BuildOptions(precision="fp16", keep_io=False, lowering="dense")
    trtkp.build(folder / "net.onnx", tmp_path / "half", method="none", options=half)
    with pytest.raises(InputError, match=r"half: has input image float16.*; compare engines of one model; with fp16"):
        compared("dense", tmp_path / "half")
    fixed = write_classifier(tmp_path / "fixed.onnx", batch=2)
    assert compared("dense", fixed).batches == (2,)
    with pytest.raises(InputError, match=r"fixed\.onnx: batch 4 is outside 2\.\.2"):
        compared("dense", fixed, batches=(4,))


def test_dynamic_sizes_need_a_shape(compared: Compared, folder: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        model = onnx.load(folder / "net.onnx")
        for axis, dim in ((2, "height"), (3, "width")):
            model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = dim
        onnx.save(model, tmp_path / f"{name}.onnx")
    pair = (tmp_path / "one.onnx", tmp_path / "two.onnx")
    with pytest.raises(InputError, match=r"dimension 2 of input image .* is dynamic; give --input-shape"):
        compared(*pair)
    assert compared(*pair, input_shape=["5x3x16x12"]).batches == (5,)
    with pytest.raises(InputError, match="--input-shape 5x3x16: does not fit"):
        compared(*pair, input_shape=["5x3x16"])
    assert compared(pair[0], "dense").batches == (4,)  # the bundle's profile says the rest


def test_corrupted_bundle(compared: Compared, folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder / "kep", tmp_path / "kep")
    content = bytearray((copy / "engine.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "engine.onnx").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"engine\.onnx: was changed since it was built"):
        compared("dense", copy)


@pytest.mark.skipif(bool(find_gpus().gpus), reason="a GPU is here")
@pytest.mark.parametrize(("magic", "name"), [(b"vtrt", "TensorRT-RTX"), (b"ftrt", "TensorRT")])
def test_engines_need_a_gpu(compared: Compared, tmp_path: Path, magic: bytes, name: str) -> None:
    (tmp_path / "model.engine").write_bytes(magic + bytes(60))
    with pytest.raises(NotRunnableError, match=rf"model\.engine: {name} cannot open the engine here: "):
        compared("dense", tmp_path / "model.engine")


def test_external_data_counts_and_stays_inside(compared: Compared, folder: Path, tmp_path: Path) -> None:
    model = onnx.load(folder / "net.onnx")
    onnx.save(model, tmp_path / "big.onnx", save_as_external_data=True, location="big.data", size_threshold=0)
    entry = compared("dense", tmp_path / "big.onnx").entries[1]
    sizes = [(tmp_path / name).stat().st_size for name in ("big.onnx", "big.data")]
    assert entry.engine_bytes == sum(sizes)
    (tmp_path / "inner").mkdir()
    model = onnx.load(tmp_path / "big.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        next(e for e in tensor.external_data if e.key == "location").value = "../big.data"
    (tmp_path / "inner" / "net.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="external data refused"):
        compared("dense", tmp_path / "inner" / "net.onnx")


@pytest.mark.serial
@pytest.mark.skipif(sys.platform != "linux", reason="where ru_maxrss of a child begins at its parent's")
def test_memory_is_that_of_the_engine_alone(compared: Compared, tmp_path: Path) -> None:
    small = write_classifier(tmp_path / "small.onnx")
    large = write_classifier(tmp_path / "large.onnx", (3, 1024, 1024))
    ballast = np.ones(60_000_000)  # 480 MB in this process, none of theirs
    first, second = (entry.memory for entry in compared(small, large, batches=(1,)).entries)
    assert ballast[-1] == 1
    assert first is not None
    assert second is not None
    weights = large.stat().st_size
    assert first.peak_bytes < 250e6
    assert second.peak_bytes - first.peak_bytes > 0.9 * weights


def test_peak_bytes_and_the_child_that_tells_them() -> None:
    before = peak_bytes()
    assert before is not None
    block = np.ones(30_000_000)
    assert block[0] == 1
    assert (peak_bytes() or 0) >= max(before, block.nbytes)
    command = child_command("trtkp.comparison.memory")
    assert command[:2] == [sys.executable, "-P"]
    assert os.getcwd() in json.loads(command[-1]) or "" not in sys.path  # noqa: PTH109 - as sys.path has it

"""Errors: one line that names the file and the remedy, and the exit status that scripts go by."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from examples.nets import export
from trtkp.machine.gpu import find_gpus
from trtkp.machine.packages import importable

from .conftest import Trtkp

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            "-m magic",
            "--method magic: not known; use one of kep, vskp, pptkp, soks, dppnet, l1, channels, none, from-zeros",
        ),
        ("--n 10", "layer w1: n = 10, but a 3x3 kernel has 9 elements; give --n 9 or less"),
        ("--n 0", "--n 0: out of range; give 1 or more"),
        ("--n -1", "--n -1: out of range; give 1 or more"),
        ("--n 2 --ratio 0.5", "--n and --ratio exclude each other"),
        ("--ratio 1", "--ratio 1: out of range; give 0 to below 1"),
        ("--ratio -0.1", "--ratio -0.1: out of range; give 0 to below 1"),
        ("--ratio nan", "--ratio nan: out of range; give 0 to below 1"),
        ("--share some", "--share some: not known; use one of none, per-channel, per-filter, per-layer"),
        (
            "--ratio 0.5 --allocation local",
            "--allocation local: no such file; use global, uniform, or a file",
        ),
        ("-m none --n 2", "--n is a setting of kep, not of none; leave it out, or use --method kep"),
        (
            "-m kep --alpha 0.5",
            "--alpha is a setting of vskp and dppnet, not of kep; leave it out, or use --method vskp",
        ),
        ("--from-zeros --share none", "--share is a setting of kep, not of from-zeros"),
        ("--layers w7*", "no convolution is called w7*; the model has w0, w1, w2"),
        ("--skip conv1", "no convolution is called conv1"),
        ("--lowering winograd", "--lowering winograd: not known; use one of auto, dense, box"),
        ("-p int4", "--precision int4: not known; use one of fp32, fp16, int8, fp8"),
        ("-b cuda", "--backend cuda: not known; use one of auto, tensorrt, tensorrt-rtx, onnxruntime, onnxruntime-rtx"),
        ("--threads 0", "--threads 0: out of range; give 1 or more"),
        ("--threads many", "Invalid value for '--threads'"),
        ("-b onnxruntime --target sm86", "backend onnxruntime has no option --target sm86"),
        ("--min 8x3x8x8 --opt 4x3x8x8", "min 8, opt 4"),
        ("--min 4x3x8x8 --max 2x3x8x8", "min 4"),
        ("--opt 4x3x8", "has 3 dimensions"),
        ("--opt 4x3x8x9", "does not fit the input"),
        ("--opt 4x3x8xb", "not a shape; write it as 1x3x224x224"),
        ("--opt 0x3x8x8", "every dimension must be at least 1"),
        ("--max other:4x3x8x8", "no input of that name; the model has image"),
        ("--input-shape 1x1x8x8", "does not fit the input"),
        ("--data nothing.npz", "nothing.npz: no such file"),
        ("--data net.onnx", "net.onnx: not a readable .npz archive"),
        ("--bogus", "No such option: --bogus"),
        ("--n", "Option '--n' requires an argument"),
        ("extra", "unexpected extra argument"),
    ],
)
def test_options_of_build(trtkp: Trtkp, folder: Path, options: str, words: str) -> None:
    done = trtkp("build", "net.onnx", "-o", "new", *options.split())
    assert words in done.message
    assert done.status == 2
    assert not Path("new").exists()
    assert not list(folder.glob(".new*"))
    # standard output is kept for the document, of which there is none
    assert trtkp("build", "net.onnx", "-o", "new", "--json", *options.split()).out == ""


@pytest.mark.skipif(not importable("tensorrt_rtx"), reason="package tensorrt_rtx is not installed")
def test_unknown_target(trtkp: Trtkp, folder: Path) -> None:
    done = trtkp("build", "net.onnx", "-o", "new", "-b", "tensorrt-rtx", "--target", "sm42")
    assert "no target sm42; choose from sm75" in done.message
    assert done.status == 2
    assert not Path("new").exists()


def save_models(folder: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()
    torch.export.save(export(net, (3, 8, 8), batch=(2, 6)), folder / "range.pt2")
    for name, dtype in (("bfloat16", torch.bfloat16), ("double", torch.float64)):
        program = torch.export.export(net.to(dtype), (torch.zeros(2, 3, 8, 8, dtype=dtype),))
        torch.export.save(program, folder / f"{name}.pt2")
    net.float()[2].weight.data[0, 0] = torch.nan
    torch.export.save(export(net, (3, 8, 8)), folder / "nan.pt2")
    (folder / "cut.pt2").write_bytes((folder / "range.pt2").read_bytes()[:4000])
    torch.save(net.state_dict(), folder / "weights.pt")
    torch.save(net, folder / "module.pt")
    (folder / "empty.pt2").touch()
    (folder / "text.onnx").write_text("hello")
    (folder / "cut.onnx").write_bytes((folder / "net.onnx").read_bytes()[:1000])


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("absent.pt2", "", "absent.pt2: no such file"),
        ("kep", "", "kep: "),
        ("empty.pt2", "", "empty.pt2: "),
        ("cut.pt2", "", "cut.pt2: "),
        ("text.onnx", "", "text.onnx: "),
        ("cut.onnx", "", "cut.onnx: "),
        ("weights.pt", "", "weights.pt: is a state dict of 4 tensors without a network"),
        ("weights.pt", "--arch nowhere:net", "nowhere"),
        ("weights.pt", "--arch nothing", "nothing"),
        ("module.pt", "", "use --trust-pickle"),
        ("range.pt2", "--max 7x3x8x8", "batch = 7 is outside 2..6 of the export"),
        (
            "range.pt2",
            "--min 1x3x8x8",
            "range.pt2: layer input: shape 1x3x8x8: batch = 1 is outside 2..6 of the export",
        ),
        ("net.onnx", "--n 10", "net.onnx: layer w1: n = 10"),
        ("nan.pt2", "", "nan.pt2: layer 2.weight: its values are not all numbers (NaN)"),
        (
            "bfloat16.pt2",
            "",
            "bfloat16.pt2: layer 0.weight: the model is in bfloat16, engines are in float32 or float16",
        ),
        ("double.pt2", "", "double.pt2: layer 0.weight: the model is in double"),
    ],
)
def test_models(trtkp: Trtkp, folder: Path, model: str, options: str, words: str) -> None:
    save_models(folder)
    done = trtkp("build", model, "-o", "new", *options.split())
    assert words in done.message
    assert str(folder) not in done.message
    assert done.status == 2
    assert not Path("new").exists()


def test_data_of_another_layout(trtkp: Trtkp, folder: Path) -> None:
    np.savez("small.npz", x=np.zeros((2, 3, 4, 4), np.float32), y=np.zeros(2, np.int64))
    done = trtkp("build", "net.onnx", "-o", "new", "--data", "small.npz")
    assert "--data has samples of shape [3, 4, 4], the model takes [3, 8, 8]" in done.message
    assert done.status == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("inspect nothing", "nothing: no such bundle; write one with trtkp build -o"),
        ("verify net.onnx", "net.onnx: is not a bundle"),
        ("bench .", ".: is not a bundle: it holds no manifest.json"),
        ("inspect", "Missing argument 'bundle'"),
        ("bench", "no bundle to time"),
        ("bench kep kep", "the same bundle is named twice"),
        ("bench kep --batch 65", "kep: batch 65 is outside 1..64"),
        ("bench kep --runs 0", "--runs 0"),
        ("bench kep --threads 0", "--threads 0: out of range; give 1 or more"),
        ("bench kep dense nothing", "nothing: no such bundle"),
        ("verify kep --seed -1", "--seed -1"),
        ("verify kep --tolerance nan", "--tolerance nan"),
        ("verify kep --tolerance big", "Invalid value for '--tolerance'"),
        ("verify kep --model dense/model.onnx", "dense/model.onnx: "),
        ("verify kep --model absent.onnx", "absent.onnx: no such file"),
        ("frobnicate", "No such command 'frobnicate'"),
        ("--frobnicate", "No such option: --frobnicate"),
        ("doctor --fix", "No such option: --fix"),
    ],
)
def test_other_commands(trtkp: Trtkp, folder: Path, arguments: str, words: str) -> None:
    done = trtkp(*arguments.split())
    assert words in done.message
    assert done.status == 2


def test_targets_that_are_something_else(trtkp: Trtkp, folder: Path) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.tex").write_text("x")
    for target, words in (
        ("net.onnx", "is not a directory"),
        ("mine", "is not a trtkp bundle"),
        (".", "is the current folder"),
    ):
        done = trtkp("build", "net.onnx", "-o", target)
        assert words in done.message
        assert done.status == 2
    assert Path("mine/thesis.tex").exists()


def test_source_inside_the_old_bundle_is_not_lost(trtkp: Trtkp, folder: Path) -> None:
    Path("net.onnx").rename("kep/net.onnx")
    done = trtkp("build", "kep/net.onnx", "-o", "kep")
    assert "a file that its manifest does not list, net.onnx" in done.message
    assert Path("kep/net.onnx").exists()


def test_failed_job_has_status_one(trtkp: Trtkp, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trtkp.engine.onnxruntime import OnnxRuntimeBackend
    from trtkp.errors import JobError

    def refuse(*_: object) -> None:
        raise JobError("it broke", remedy="try again")

    monkeypatch.setattr(OnnxRuntimeBackend, "build", refuse)
    done = trtkp("build", "net.onnx", "-o", "kep", "-b", "onnxruntime")
    assert (done.status, done.message) == (1, "net.onnx: it broke; try again")
    assert trtkp("verify", "kep").status == 0  # the old one


def test_internal_error_is_one_line_too(trtkp: Trtkp, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: object) -> None:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr("trtkp.bundle.load", explode)
    done = trtkp("inspect", "kep")
    assert done.status == 1
    assert done.err == (
        "error: internal error, RuntimeError: first line second line; run again with --debug and report it\n"
    )


@pytest.mark.parametrize("place", [0, 1, 2])
def test_debug_shows_where(trtkp: Trtkp, place: int) -> None:
    arguments = ["inspect", "nothing"]
    arguments.insert(place, "--debug")
    done = trtkp(*arguments)
    assert done.status == 2
    assert done.err.startswith("Traceback (most recent call last):")
    assert "trtkp.errors.InputError: nothing: no such bundle" in done.err
    assert done.err.splitlines()[-1] == "error: nothing: no such bundle; write one with trtkp build -o"


# --- as a process -----------------------------------------------------------------------------------------------------


def test_reader_that_goes_away(folder: Path) -> None:
    """``trtkp inspect kep | head -1`` with a reader that is gone before anything is written."""
    for arguments in (["inspect", "kep"], ["inspect", "kep", "--json"], ["--help"], ["doctor", "--json"]):
        reader, writer = os.pipe()
        os.close(reader)
        child = subprocess.run(
            [sys.executable, "-m", "trtkp", *arguments],
            stdout=writer, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, check=False,
        )  # fmt: skip
        os.close(writer)
        assert child.stderr == ""
        assert child.returncode == 141


def test_as_a_module_and_as_a_script(folder: Path) -> None:
    for command in (
        [sys.executable, "-m", "trtkp"],
        [sys.executable, "-c", "import sys; from trtkp.cli import main; sys.exit(main())"],
    ):
        for arguments, status in ((["inspect", "kep"], 0), (["inspect", "nothing"], 2)):
            child = subprocess.run([*command, *arguments], capture_output=True, text=True, env=ENVIRONMENT, check=False)
            assert child.returncode == status
            assert bool(child.stdout) == (status == 0)
            assert child.stderr.count("\n") == (0 if status == 0 else 1)


def test_interrupted_build(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in Path("kep").iterdir()}
    child = subprocess.Popen(
        [sys.executable, "-m", "trtkp", "build", "net.onnx", "-o", "kep", "--share", "per-layer"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
        # a shell's background job is born deaf to it, and so would its children be
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - no threads here
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while child.poll() is None and not list(folder.glob(".kep.building-*/index_sets.safetensors")):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, out, err) == (130, "", "error: interrupted; nothing was changed\n")
    assert {path.name: path.read_bytes() for path in Path("kep").iterdir()} == before
    assert not list(folder.glob(".kep*"))


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ("dense", 2, "one engine alone cannot be compared; name two or more; the first is the baseline"),
        ("dense absent", 2, "absent: no such bundle"),
        ("dense dense/", 2, "is given twice"),
        ("dense data.npz", 2, "data.npz: is no model format that trtkp knows"),
        ("dense kep --batch 1,two", 2, "--batch 1,two: not whole numbers separated by commas; write --batch 1,8,32"),
        ("dense kep --batch 0", 2, "--batch 0: out of range; give 1 or more"),
        ("dense kep --batch 65", 2, "dense: batch 65 is outside 1..64, the range of input image"),
        ("dense kep --runs 0", 2, "--runs 0"),
        ("dense kep --data absent", 2, "absent: no such data"),
        ("dense kep --html no/x.html", 2, "x.html: its directory does not exist"),
        ("dense kep --html kep", 2, "kep: is a directory"),
        ("dense kep --html kep/x.html", 2, "would overwrite kep"),
        ("net.onnx kep --csv net.onnx", 2, "net.onnx: would overwrite net.onnx"),
        ("dense kep --csv x --html x", 2, "--csv and --html name the same file"),
        ("dense cut.engine", 2, "cut.engine: is not a TensorRT engine, or is incomplete"),
        ("dense damaged", 2, "was changed since it was built"),
    ],
)
def test_compare(trtkp: Trtkp, folder: Path, arguments: str, status: int, words: str) -> None:
    Path("cut.engine").write_bytes(b"vt")
    shutil.copytree("kep", "damaged")
    content = bytearray(Path("damaged/engine.onnx").read_bytes())
    content[-1] ^= 1
    Path("damaged/engine.onnx").write_bytes(content)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    done = trtkp("compare", *arguments.split())
    assert words in done.message
    assert done.status == status
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.skipif(bool(find_gpus().gpus), reason="a GPU is here")
def test_compare_with_an_engine_that_needs_a_gpu(trtkp: Trtkp, folder: Path) -> None:
    Path("model.engine").write_bytes(b"ftrt" + bytes(100))
    done = trtkp("compare", "dense", "model.engine", "--html", "x.html")
    assert "model.engine: TensorRT cannot open the engine here: " in done.message
    assert done.status == 1
    assert not Path("x.html").exists()

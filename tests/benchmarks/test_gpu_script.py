"""benchmarks/gpu: what runs without a GPU, dry runs of every kind of part on the emulator, resuming, and the report."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.dom import minidom

import numpy as np
import pytest
import torch

from benchmarks.gpu.__main__ import LAYER_NETS, NET_NAMES, PART_NAMES, _parts
from benchmarks.gpu.nets import METHODS, NETS, _index_sets, _narrow_source, conv_layers, macs_of, narrowed
from benchmarks.gpu.record import CONTEXT_LOST, Part, Record
from benchmarks.gpu.report import markdown, plot
from benchmarks.gpu.shapes import SHAPES, Shape, granularities
from examples.nets.resnet import resnet50
from trtkp.index.index_set import from_mask

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks/gpu/run.sh"
#: One part of every kind.
DRY = ("checks", "sanitizer", "ceilings", "layers-resnet50-32", "nets-resnet50", "compiled-resnet50")
#: What a GPU machine with PyTorch need not have.
ABSENT = ("pydantic", "polygraphy", "onnx", "onnx_ir", "onnxruntime", "typer", "safetensors", "pytest", "hypothesis")


def script(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name not in ("TRTKP_LIBRARY", "OUT")}
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments], env=env | {"PYTHON": sys.executable} | environment, capture_output=True,
        text=True, check=False, timeout=570,
    )  # fmt: skip


def without_packages(folder: Path) -> str:
    """A PYTHONPATH on which `ABSENT` cannot be imported."""
    folder.mkdir()
    names = ", ".join(map(repr, ABSENT))
    (folder / "sitecustomize.py").write_text(f"import sys\nfor name in ({names}): sys.modules[name] = None\n")
    return f"{folder}{os.pathsep}{ROOT}"


@pytest.mark.slow
def test_dry_run_of_every_kind_of_part(library_path: Path, tmp_path: Path) -> None:
    """All the Python that a GPU run executes; then nothing is measured twice, and the report has it all."""
    options = ["--device", "emulated", "--parts", ",".join(DRY), "--out", str(tmp_path)]
    environment = {"TRTKP_LIBRARY": str(library_path), "PYTHONPATH": without_packages(tmp_path / "site")}
    done = script(*options, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads((tmp_path / "gpu.json").read_text())
    assert {name: part["done"] for name, part in document["parts"].items()} == dict.fromkeys(DRY, True)
    assert "meaningless" in document["runs"][0]["note"]

    checks = document["parts"]["checks"]["items"]
    tactics = {name for item in checks.values() for name in item["tactics"]}
    assert {"reference", "mma_128x128", "mma_64x32", "mma_64x64_k64", "tf32_64x64", "simt_64x32", "single_128x32",
            "direct", "sparse_64x64", "sparse_singles_64x64"} <= tactics  # fmt: skip
    assert not any(item["failures"] for item in checks.values())
    assert "skipped" in document["parts"]["sanitizer"]["items"]["memcheck"]
    layers = document["parts"]["layers-resnet50-32"]["items"]
    timed = [item for item in layers.values() if item.get("speed_up")]
    assert len(timed) > 30
    assert any(item.get("tactic", "").startswith("sparse") for name, item in layers.items() if "2:4" in name)
    predicted = [item["tactics"][item["tactic"]]["predicted_us"] for item in timed]
    assert all(time is None or time > 0 for time in predicted)  # None: a tactic whose loop was not counted
    assert sum(time is not None for time in predicted) > len(timed) / 2
    assert all("how" in item or "skipped" in item for item in layers.values())
    nets = document["parts"]["nets-resnet50"]["items"]
    assert set(nets) == {f"{batch} | {variant}" for batch in (1, 2) for variant in (
        "dense", *METHODS, *(f"channels at the MACs of {method}" for method in METHODS))}  # fmt: skip
    packed = nets["1 | vskp 0.7, groups of 64, blocks of 8"]
    assert packed["layers_packed"] == packed["layers_pruned"] > 0

    report = (tmp_path / "gpu.md").read_text()
    for words in ("Checks against float64", "## layers-resnet50-32", "Measured over predicted", "| torch.compile |",
                  "timings are meaningless", "| mma_64x32 |"):  # fmt: skip
        assert words in report
    drawn = minidom.parse(str(tmp_path / "gpu.svg"))  # noqa: S318 (our own file)
    assert drawn.documentElement.tagName == "svg"

    again = script(*options, **environment)
    assert again.returncode == 0
    assert again.stdout.count(": done already") == len(DRY)
    after = json.loads((tmp_path / "gpu.json").read_text())
    assert after["parts"] == document["parts"]
    assert len(after["runs"]) == 2


def test_time_that_is_up_leaves_the_rest_for_the_next_run(library_path: Path, tmp_path: Path) -> None:
    options = ["--device", "emulated", "--parts", "ceilings", "--out", str(tmp_path / "first")]
    done = script(*options, "--minutes", "0", TRTKP_LIBRARY=str(library_path))
    assert done.returncode == 4, done.stdout + done.stderr
    assert "ceilings: more is left, 0 items" in done.stdout
    assert "left: ceilings" in done.stdout
    options[-1] = str(tmp_path / "second")
    resumed = script(*options, "--resume", str(tmp_path / "first/gpu.json"), TRTKP_LIBRARY=str(library_path))
    assert resumed.returncode == 0
    assert len(json.loads((tmp_path / "second/gpu.json").read_text())["runs"]) == 2


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--list"], 0, "nets-resnet56-cifar"),
        (["--parts", "layers-alexnet", "--list"], 0, "checks"),
        (
            ["--parts", "layers-alexnet", "--device", "emulated"],
            2,
            "no part is called layers-alexnet; --list names them",
        ),
        (["--device", "emulated"], 1, "libtrtkp.so, the compiled kernels, is not installed"),
    ],
)
def test_usage(arguments: list[str], status: int, words: str, tmp_path: Path) -> None:
    package_library = ROOT / "trtkp/lib/libtrtkp.so"
    if status == 1 and (package_library.exists() or list(ROOT.glob("build/**/libtrtkp.so"))):
        pytest.skip(f"a compiled library lies in {ROOT}: what is said without one is not seen")
    done = script(*arguments, OUT=str(tmp_path))
    assert done.returncode == status, done.stdout + done.stderr
    assert words in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("missing", "words"), [("nvcc", "no nvcc: install the CUDA toolkit"), ("cmake", "no cmake")])
def test_a_missing_tool_is_named(missing: str, words: str, tmp_path: Path) -> None:
    """A PATH with the tools that the script needs, but one."""
    for tool in ("bash", "dirname", "nproc", "head", "tr", "sed", "mkdir", "tail", "seq", "nvcc", "cmake"):
        if tool != missing:
            (tmp_path / tool).symlink_to(shutil.which(tool) or "/bin/true")
    python = tmp_path / "python-without-cmake"
    python.write_text(f'#!/bin/sh\n[ "$2" = cmake ] && exit 1\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    done = script(PATH=str(tmp_path), PYTHON=str(python))
    assert done.returncode == 1
    assert words in done.stderr
    assert script(PATH=str(tmp_path), PYTHON="python9").returncode == 2


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on PATH: nothing to build with")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the script would go on")
def test_without_a_gpu_it_builds_and_says_so(tmp_path: Path) -> None:
    copy = tmp_path / "checkout"
    for name in ("CMakeLists.txt", "plugins", "benchmarks", "trtkp/__init__.py"):
        source, target = ROOT / name, copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    before = set(copy.rglob("*"))
    done = subprocess.run(
        ["bash", str(copy / "benchmarks/gpu/run.sh")], env=os.environ | {"PYTHON": sys.executable},
        capture_output=True, text=True, check=False, timeout=570,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert (copy / "build/gpu/plugins/libtrtkp.so").is_file()
    assert "no GPU on this machine (nvidia-smi lists none): the kernels are built, nothing was run" in done.stderr
    assert {path.relative_to(copy).parts[0] for path in set(copy.rglob("*")) - before} == {"build"}  # git ignores it


def test_every_part_has_a_function() -> None:
    assert set(_parts()) == set(PART_NAMES)
    assert set(NET_NAMES) <= set(NETS)
    assert set(LAYER_NETS) <= set(SHAPES)


def test_a_failure_is_recorded_and_the_others_still_count(tmp_path: Path) -> None:
    def fail() -> dict[str, Any]:
        raise RuntimeError("no such luck\nat all")

    part = Part(Record(tmp_path / "gpu.json", {"gpu": "none"}), "part", time.monotonic() + 60)
    assert part.measure("bad", fail) == {"failed": "RuntimeError: no such luck"}
    assert part.measure("good", lambda: {"value": 1}) == {"value": 1}
    assert part.measure("bad", lambda: {"value": 2}) == {"failed": "RuntimeError: no such luck"}
    part.close()
    assert part.failures == ["bad: RuntimeError: no such luck"]

    lost = Part(Record(tmp_path / "gpu.json", {"gpu": "none"}), "lost", time.monotonic() + 60, lambda: False)
    with pytest.raises(SystemExit) as raised:
        lost.measure("bad", fail)
    assert raised.value.code == CONTEXT_LOST
    document = json.loads((tmp_path / "gpu.json").read_text())
    assert document["parts"]["lost"]["items"]["bad"]["failed"].startswith("RuntimeError")
    with pytest.raises(SystemExit, match="holds results of none: give another --out for this GPU"):
        Record(tmp_path / "gpu.json", {"gpu": "H200"})


def test_shapes_are_those_of_the_net() -> None:
    """Every 3x3 and 1x1 convolution of ResNet-50, and nothing else."""
    found = {
        Shape(layer.channels, layer.filters, layer.kernel[0], layer.input_size[0], layer.strides[0])
        for layer in conv_layers(resnet50(), (3, 224, 224))
        if layer.kernel[0] in (1, 3)
    }
    assert set(SHAPES["resnet50"]) == found
    assert len(SHAPES["vgg16"]) == 8
    assert sum(shape.macs(1) for shape in SHAPES["vgg16"]) > 10e9


@pytest.mark.parametrize("shape", [Shape(64, 128, 3, 7), Shape(256, 64, 1, 7)], ids=lambda shape: shape.name)
def test_granularities(shape: Shape) -> None:
    """Every granularity has its density, its groups and its blocks."""
    names = [granularity.name for granularity in granularities()]
    assert len(set(names)) == len(names)
    for group in (32, 64, 128):
        assert {f"blocks of {block}, groups of {group}, 0.35" for block in (8, 16)} <= set(names)
    assert {f"blocks of 1, groups of {group}, 0.25" for group in (8, 16, 32)} <= set(names)
    for granularity in granularities():
        mask = granularity.mask(shape, np.random.default_rng(0))
        if mask is None:
            assert (granularity.kind, shape.kernel) == ("stripe", 1)
            continue
        assert mask.shape == (shape.filters, shape.channels, shape.kernel, shape.kernel)
        assert mask.mean() == pytest.approx(granularity.density, abs=0.13)
        index = from_mask(mask)
        if granularity.kind == "blocks":
            assert index.filter_groups <= -(-shape.filters // granularity.group)
            assert (mask.reshape(shape.filters, -1, granularity.block, shape.kernel**2).any(2) ==
                    mask.reshape(shape.filters, -1, granularity.block, shape.kernel**2).all(2)).all()  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("net", ["resnet18", "vgg16-cifar"])
def test_channel_pruning_at_equal_macs(net: str) -> None:
    """The narrowed net has at most the method's MACs, not far below, and still runs."""
    method, shape = "kep n=4, per layer", NETS[net][1]
    model, macs = _narrow_source(net, method)
    goal = macs_of(NETS[net][0](), shape, _index_sets(net, method))
    assert 0.75 * goal < macs <= goal
    assert macs == macs_of(model, shape)
    with torch.no_grad():
        assert model(torch.randn(2, *shape)).shape == NETS[net][0]().eval()(torch.zeros(2, *shape)).shape
    assert macs_of(narrowed(NETS[net][0](), 1.0), shape) == macs_of(NETS[net][0](), shape)


def test_the_report_of_a_result() -> None:
    item = {
        "median_us": 50.0, "speed_up": 1.5, "density": 0.5, "tactic": "mma_128x64", "flops_per_s": 2e14,
        "bound": "issue",
        "tactics": {"mma_128x64": {"us": 50.0, "predicted_us": 40.0, "bound": "issue"}},
    }  # fmt: skip
    document = {
        "runs": [{"gpu": "NVIDIA <H200>", "date": "2026-01-01", "commit": "abc"}],
        "parts": {
            "checks": {"items": {"a": {"tactics": {"mma_64x64": {"cases": 3, "worst": 1e-3}}, "failures": ["bad"]}}},
            "ceilings": {"items": {"copy": {"bytes_per_s": 4.3e12}, "matrix float16": {"failed": "out of memory"}}},
            "layers-vgg16-32": {"items": {"3x3 64-64 @224 | blocks of 8, groups of 64, 0.5": item,
                                          "3x3 64-64 @224 | dense": {"median_us": 75.0}}},
        },
    }  # fmt: skip
    text = markdown(document)
    assert "| mma_64x64 | 3 | 1.0e-03 |" in text
    assert "1 failures.\n- bad" in text
    assert "- copy: 4.30 TB/s" in text
    assert "| blocks of 8, groups of 64, 0.5 | 1 | 0.50 | 1.50 | 1.50 | 1.50 | 75% |" in text
    assert (
        "| 3x3 64-64 @224 | 75.0 | blocks of 8, groups of 64, 0.5 | mma_128x64 | 50.0 | 1.50 | 200.0 | issue |" in text
    )
    assert "| mma_128x64 | issue | 1 | 1.25 | 1.25 | 1.25 |" in text
    assert "- ceilings: matrix float16: out of memory" in text
    drawn = minidom.parseString(plot(document))  # noqa: S318 (our own text)
    title = drawn.getElementsByTagName("text")[0].firstChild
    assert title.nodeValue == "Speed-up over dense cuDNN, NVIDIA <H200>"

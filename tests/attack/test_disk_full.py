"""A disk that is full at any write: one line, exit status 1, the old output whole, and nothing left beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import trtkp
from tests.models import save_program, write_stripes

ROOT = Path(__file__).parents[2]

_LIMITED = """
import resource, signal, sys
import trtkp.cli.app
from trtkp.cli import main

for name in sys.argv[2].split(","):
    __import__(name)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(main(sys.argv[3:]))
"""

#: What a command imports, so that no compiled module is written under the limit.
_MODULES = "onnxruntime,trtkp.pipeline.build,trtkp.pruning.run.run,trtkp.budget.search"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def limited(limit: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command line whose files cannot grow beyond a number of bytes."""
    return subprocess.run(
        [sys.executable, "-c", _LIMITED, str(limit), _MODULES, *arguments],
        capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def assert_full(done: subprocess.CompletedProcess[str], before: dict[str, bytes], kept: tuple[str, ...] = ()) -> None:
    """One line that names a file and says what to do; every file is as before, but for those of ``kept``."""
    assert done.returncode == 1, (done.stdout, done.stderr)
    errors = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    assert len(errors) == 1, done.stderr
    assert errors[0].startswith("error: "), errors
    assert "cannot be written (" in errors[0], errors
    assert "free some space" in errors[0], errors
    after = {name: content for name, content in contents(Path()).items() if not name.startswith(kept or ("?",))}
    assert after == before


#: A command line, and sizes of files at which it breaks off, from its first file to its last.
CASES = {
    "build": ("build net.onnx -b onnxruntime -o OUT --share per-layer", (500, 33_000)),
    "build over a bundle": ("build net.onnx -b onnxruntime -o taps --share per-layer", (20_000,)),
    "prune": ("prune net.onnx --method vskp --ratio 0.5 -o OUT", (0, 30_000)),
    "calibrate": ("calibrate dense --data data.npz -o OUT", (1_000, 30_000)),
    "export-triton": ("export-triton dense -o OUT", (100, 20_000)),
    "export-kserve": ("export-kserve kep --storage s3://a/b -o k.yaml", (100,)),
    "export-index": ("export-index gather -o i.safetensors", (100,)),
    "compare": ("compare dense taps --runs 2 --openings 1 --no-layers --csv c.csv", (100,)),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_files_that_cannot_grow(folder: Path, case: str) -> None:
    line, limits = CASES[case]
    before = contents(Path())
    for limit in limits:
        assert_full(limited(limit, *line.replace("OUT", "new").split()), before)
    done = subprocess.run(
        [sys.executable, "-m", "trtkp", *line.replace("OUT", "new").split()], capture_output=True, text=True,
        timeout=120, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_search(folder: Path) -> None:
    """What was measured stays for the next attempt; the output is not there."""
    line = "search net.onnx --data data.npz --target-flops 80% --trials 2 --ratios 0.5 --filter-groups 16 -o new"
    before = contents(Path())
    for limit in (0, 200, 5_000):
        done = limited(limit, *line.split())
        assert_full(done, before, (".new.searching", "new/"))
        assert not [name for name in contents(Path()) if name.endswith((".part", ".lock"))]
        assert not Path("new/allocation.json").exists()


@pytest.mark.slow
def test_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that cannot be written ends the training with a line; the last good one stays."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    first, second, last = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 3)
    net = nn.Sequential(first, nn.ReLU(), second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)
    save_program(net, tmp_path / "net.pt2", (1, 8, 8))
    write_stripes(tmp_path / "data.npz")
    before = contents(tmp_path)
    text = "prune net.pt2 --method vskp --ratio 0.5 --filter-group 8 --data data.npz --epochs 1 -o new"
    line = text.split()
    # the checkpoint, and then the program that pruning without training writes
    for limit, arguments in ((1_000, line), (6_000, line[: line.index("--data")] + line[-2:])):
        assert_full(limited(limit, *arguments), before, (".new.training",))
        assert not Path("new").exists()
        assert not list(tmp_path.rglob("*.part"))
    done = limited(1 << 30, *line)
    assert done.returncode == 0, done.stderr
    assert trtkp.load_pruned("new").manifest.method == "vskp"
    assert set(contents(tmp_path)) == {*before, *(f"new/{path.name}" for path in Path("new").iterdir())}


@pytest.mark.slow
def test_small_file_system(folder: Path) -> None:
    disk = Path("disk")
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=60k", "trtkp-test", str(disk)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"no small file system can be mounted: {mounted.stderr.strip()}")
    try:
        for line in (
            "build net.onnx -b onnxruntime -o disk/new --share per-layer",
            "prune net.onnx --method vskp --ratio 0.5 -o disk/new",
            "calibrate dense --data data.npz -o disk/new",
        ):
            done = subprocess.run(
                [sys.executable, "-m", "trtkp", *line.split()], capture_output=True, text=True, timeout=120,
                check=False, env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
            )  # fmt: skip
            if done.returncode == 0:  # some outputs fit
                subprocess.run(["rm", "-r", "disk/new"], check=True)
                continue
            errors = [one for one in done.stderr.splitlines() if not one.startswith("warning: ")]
            assert done.returncode == 1
            assert len(errors) == 1
            assert "disk/new: cannot be written (" in errors[0]
            assert "free some space" in errors[0]
            assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)

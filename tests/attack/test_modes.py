"""What is written can be read by whom the umask allows, and what cannot be read gives one line."""

from __future__ import annotations

import ast
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.attack.rights import bound_by_permissions
from trtkp.cli import main
from trtkp.cli.app import run
from trtkp.errors import InputError
from trtkp.files import read_file, replacing, write_file
from trtkp.plan.cache import DIRECTORY_VARIABLE
from trtkp.pruning.train.checkpoint import Checkpoint, save_checkpoint
from trtkp.pruning.train.log import TrainingLog

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=[0o022, 0o027], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    old = os.umask(request.param)
    yield request.param
    os.umask(old)


#: Command lines that write files, each in one folder after the other.
COMMANDS = (
    "build net.onnx -b onnxruntime -o new/kep --share per-layer",
    "build net.onnx -b onnxruntime -o new/dense --method none",
    "calibrate new/kep --data data.npz -o new/int8",
    "prune net.onnx --method vskp --ratio 0.5 --filter-group 8 -o new/pruned",
    "export-index new/pruned -o new/index.safetensors",
    "compare new/dense new/kep --runs 2 --openings 1 --no-layers --csv new/c.csv --html new/r.html",
    "export-triton new/dense -o new/repository",
    "export-kserve kep --storage s3://models/kep -o new/kserve.yaml",
    "search net.onnx --data data.npz --target-flops 80% --trials 2 --ratios 0.5 --filter-groups 16 -o new/found",
)


@pytest.mark.slow
def test_every_command_follows_the_umask(folder: Path, umask: int, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("new").mkdir()
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(folder / "new" / "timings"))
    for line in COMMANDS:
        assert main(line.split()) == 0, line
    save_checkpoint(
        Path("new/training/checkpoint.safetensors"), Checkpoint("f", "s", 1, 0, tensors={"a": torch.ones(3)})
    )
    log = TrainingLog(Path("new/training"))
    log.add({"stage": "s", "epoch": 1})
    log.begin("s", 1)
    wrong = {
        str(path): oct(mode)
        for path in Path("new").rglob("*")
        if (mode := path.stat().st_mode & 0o777) != (0o777 if path.is_dir() or path.suffix == ".sh" else 0o666) & ~umask
    }
    assert wrong == {}
    expected = {
        "index_sets.safetensors", "samples.safetensors", "engine.onnx", "calibration.json", "c.csv", "r.html",
        "allocation.json", "log.csv", "checkpoint.safetensors", "run-tritonserver.sh",
    }  # fmt: skip
    written = {path.name for path in Path("new").rglob("*")}
    assert written >= expected
    assert list(Path("new/timings").glob("*.json"))
    assert not [name for name in written if name.endswith(".part")]


def test_no_file_is_made_past_the_helper() -> None:
    """``mkstemp`` and its like make files that only their owner can read."""
    private = {"mkstemp", "NamedTemporaryFile"}
    # TensorRT's timing cache is made by a process of its own
    known = {("trtkp/files.py", "open")}
    found = set()
    for path in (path for room in ("trtkp", "prune", "calib") for path in (ROOT / room).rglob("*.py")):
        if any(part.is_symlink() for part in path.parents):
            continue
        place = path.relative_to(ROOT).as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            makes = name == "open" and "O_CREAT" in ast.unparse(call)
            # safetensors writes for the owner alone, which `replacing` mends
            past = name == "save_file" and not any(isinstance(one, ast.Name) and one.id == "part" for one in call.args)
            if name in private or makes or past:
                found.add((place, name))
    assert found <= known
    assert ("trtkp/files.py", "open") in found


def test_replacing_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    target = tmp_path / ("x" * 255)  # as long as names may be
    write_file(target, "old")

    def fail() -> None:
        with replacing(target) as part:
            part.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert target.read_text() == "old"
    write_file(target, b"new")
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_replaced_file_keeps_its_mode_and_its_link(tmp_path: Path) -> None:
    private = tmp_path / "private.json"
    private.write_text("old")
    private.chmod(0o600)
    link = tmp_path / "link.json"
    link.symlink_to(private)
    with replacing(link) as part:
        assert stat.S_IMODE(part.stat().st_mode) == 0o600  # nobody else may read it meanwhile
        part.write_text("new")
    assert link.is_symlink()
    assert private.read_text() == "new"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.json", "private.json"]


def test_devices_are_written_to_and_not_replaced(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    write_file(fifo, "text")
    assert os.read(reader, 10) == b"text"
    os.close(reader)
    assert fifo.is_fifo()
    with pytest.raises(OSError, match="Not a regular file"), replacing(fifo):
        pass


# --- files that cannot be read ----------------------------------------------------------------------------------------

#: What each command reads: a command line, and the file or folder in it.
READERS = (
    ("build FILE -b onnxruntime -o new", "net.onnx"),
    ("build net.onnx -b onnxruntime --data FILE -o new", "data.npz"),
    ("build FILE -b onnxruntime -o new", "pruned"),
    ("build net.onnx -b onnxruntime -o new --allocation FILE", "net.onnx"),
    ("build net.onnx -b onnxruntime -o new -p int8 --calibration FILE", "int8/calibration.json"),
    ("inspect FILE", "taps"),
    ("bench FILE", "taps"),
    ("verify FILE", "taps"),
    ("compare FILE dense", "taps"),
    ("compare FILE dense", "net.onnx"),
    ("compare dense taps --data FILE", "data.npz"),
    ("export-triton FILE -o new", "taps"),
    ("export-index FILE -o new", "gather"),
    ("prune net.onnx --index FILE -o new --method vskp", "gather/index_sets.safetensors"),
    ("prune net.onnx --recipe FILE -o new", "data.npz"),
    ("calibrate dense --data FILE -o new", "data.npz"),
    ("advise FILE", "net.onnx"),
)


@pytest.fixture
def pruned(folder: Path) -> Path:
    assert main(["prune", "net.onnx", "--method", "vskp", "--ratio", "0.5", "-o", "pruned"]) == 0
    return folder


_ALL = """
import sys
from trtkp.cli import main
for line in sys.stdin.read().splitlines():
    print("status", main(line.split()), flush=True)
"""


def test_files_without_read_permission(pruned: Path) -> None:
    """A folder that cannot be entered, and each file of it that cannot be read, for every command."""
    lines = []
    for i, (line, name) in enumerate(READERS):
        source = Path(name)
        for kind in ("closed", "within") if source.is_dir() else ("closed",):
            copy = Path(f"{kind}-{i}{source.suffix}")
            (shutil.copytree if source.is_dir() else shutil.copy)(source, copy)
            if kind == "within":
                next(path for path in sorted(copy.iterdir()) if path.suffix in (".onnx", ".safetensors")).chmod(0)
            else:
                copy.chmod(0)
            lines.append(line.replace("FILE", str(copy)))
    child = subprocess.run(
        [sys.executable, "-c", _ALL], input="\n".join(lines), capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, preexec_fn=bound_by_permissions,
    )  # fmt: skip
    for path in Path().glob("closed-*"):
        path.chmod(0o755)
    assert child.returncode == 0, child.stderr
    assert child.stdout == "status 2\n" * len(lines), child.stdout + child.stderr
    errors = child.stderr.splitlines()
    assert len(errors) == len(lines), errors
    for line, error in zip(lines, errors, strict=True):
        assert "Permission denied" in error, (line, error)
        assert "chmod" in error or "--allocation" in error, (line, error)
        assert "internal error" not in error
    assert not Path("new").exists()


@pytest.mark.parametrize("kind", ["directory", "pipe", "device", "socket"])
def test_what_is_no_file(pruned: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    other = Path("other")
    if kind == "directory":
        other.mkdir()
    elif kind == "pipe":
        os.mkfifo(other)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind("other")
    else:
        other.symlink_to("/dev/zero")
    for line, _ in READERS:
        capsys.readouterr()
        status = run(line.replace("FILE", "other").split())
        out, error = capsys.readouterr()
        assert (status, out) == (2, ""), (line, error)
        assert error.count("\n") == 1, (line, error)
        assert "other" in error, (line, error)
        assert "internal error" not in error, (line, error)


def test_a_disk_that_fails_while_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"content")

    def fail(path: Path, flags: int) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("trtkp.files.os.open", fail)
    with pytest.raises(InputError, match=r"file: cannot be read \(Input/output error\); check the path and the disk"):
        read_file(tmp_path / "file")


def test_unreadable_sizes(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"x" * 11)
    with pytest.raises(InputError, match="has 11 bytes, more than the 10 of a plan"):
        read_file(tmp_path / "large", "plan", most=10)
    assert np.frombuffer(read_file(tmp_path / "large", most=11), np.uint8).size == 11

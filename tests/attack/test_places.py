"""Places where a folder cannot be written are refused before the work, or written in another way."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import trtkp
from tests.attack.rights import bound_by_permissions
from trtkp.cli import main
from trtkp.errors import InputError
from trtkp.files import check_folder
from trtkp.pipeline import build as build_module
from trtkp.pipeline.options import BuildOptions

ROOT = Path(__file__).parents[2]

_ALL = """
import sys
from trtkp.cli import main
for line in sys.stdin.read().splitlines():
    print("status", main(line.split()), flush=True)
"""

#: Command lines that write a folder.
WRITERS = (
    "build net.onnx -b onnxruntime -o PLACE",
    "prune net.onnx --method vskp --ratio 0.5 -o PLACE",
    "calibrate dense --data data.npz -o PLACE",
    "export-triton dense -o PLACE",
)


def mounted(place: Path, *options: str) -> None:
    """Mount something, or skip the test where that is not permitted."""
    done = subprocess.run(["mount", *options, str(place)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")


@pytest.fixture(params=["tmpfs", "bind", "read-only"])
def mount(request: pytest.FixtureRequest, folder: Path) -> Iterator[Path]:
    """A mounted folder."""
    place = folder / "mount ed"  # the kernel writes the space as an octal number
    place.mkdir()
    (folder / "bound").mkdir()
    match request.param:
        case "tmpfs":
            mounted(place, "-t", "tmpfs", "-o", "size=1m", "trtkp-test")
        case "bind":
            mounted(place, "--bind", "bound")
        case _:
            mounted(place, "-t", "tmpfs", "-o", "size=1m,ro", "trtkp-test")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def refuse_to_work(*_: Any, **__: Any) -> Any:
    """Instead of the work, which must not be reached."""
    pytest.fail("the work was begun")


def test_mount_point(mount: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(build_module, "load", refuse_to_work)
    with pytest.raises(InputError, match="is a mount point, which cannot be replaced as a whole; name a folder in it"):
        trtkp.build("net.onnx", mount, options=BuildOptions(backend="onnxruntime"))
    if "read-only" in request.node.name:
        with pytest.raises(InputError, match=r"cannot be written \(Read-only file system\); choose another -o"):
            trtkp.build("net.onnx", mount / "net", options=BuildOptions(backend="onnxruntime"))
    else:
        monkeypatch.undo()
        os.chdir(mount.parent)
        trtkp.build("net.onnx", mount / "net", options=BuildOptions(backend="onnxruntime"))  # another file system
        assert trtkp.verify(mount / "net").ok


@pytest.mark.parametrize("writer", WRITERS, ids=lambda line: line.split()[0])
def test_places_that_are_refused_at_once(
    folder: Path, writer: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("trtkp.model.load_model", "trtkp.calib.ranges.measure_ranges", "trtkp.serving.export.triton._copy"):
        monkeypatch.setattr(name, refuse_to_work)
    Path("file").write_text("mine")
    Path("link").symlink_to("dense")
    Path("dangling").symlink_to("nowhere")
    Path("empty").mkdir()
    monkeypatch.setattr("trtkp.files._is_mount", lambda path: path.name == "empty")
    before = sorted(Path().iterdir())
    for place, words in (
        (".", "is the current folder"),
        ("file", "exists and is not a directory"),
        ("link", "is a link, not a directory"),
        ("dangling", "is a link, not a directory"),
        ("file/new", "cannot be written (Not a directory)"),
        ("x" * 250, "cannot be written (File name too long)"),
        ("empty", "is a mount point"),
        ("/", "/: "),
        (os.fsdecode(b"n\xff"), "the name is not UTF-8"),
    ):
        capsys.readouterr()
        assert main(writer.replace("PLACE", place).split()) == 2
        out, error = capsys.readouterr()
        assert out == ""
        assert error.count("\n") == 1
        assert words in error
        assert "internal error" not in error
    assert sorted(Path().iterdir()) == before


def test_folder_without_permission(folder: Path) -> None:
    Path("shut").mkdir()
    Path("shut").chmod(0o555)
    lines = [line.replace("PLACE", place) for line in WRITERS for place in ("shut/new", "shut/a/b")]
    lines += ["compare dense taps --csv shut/c.csv", "export-kserve kep --storage s3://a/b -o shut/k.yaml"]
    child = subprocess.run(
        [sys.executable, "-c", _ALL], input="\n".join(lines), capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, preexec_fn=bound_by_permissions,
    )  # fmt: skip
    Path("shut").chmod(0o755)
    assert child.stdout == "status 2\n" * (len(lines) - 1) + "status 1\n", child.stdout + child.stderr
    errors = child.stderr.splitlines()
    assert len(errors) == len(lines)
    assert all("cannot be written (Permission denied)" in error for error in errors), errors


def test_bundle_of_an_image_below_an_overlay(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that comes from a container's image cannot be renamed; it is replaced all the same."""
    rename = Path.rename

    def across(self: Path, target: Path) -> Path:
        if self.name == "dense":
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", across)
    monkeypatch.setattr("trtkp.bundle.writer.exchange", lambda one, other: False)
    before = sorted(Path().iterdir())
    shutil.copytree("dense", "../old")
    trtkp.build("net.onnx", "dense", method="kep", options=BuildOptions(backend="onnxruntime"))
    assert trtkp.load("dense").manifest.method == "kep"
    assert sorted(Path().iterdir()) == before


def test_place_that_becomes_busy_during_the_work(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(self: Path, target: Path) -> Path:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(Path, "rename", busy)
    before = sorted(Path().iterdir())
    with pytest.raises(
        trtkp.JobError, match=r"new: cannot be written \(Device or resource busy\); nothing was changed"
    ):
        trtkp.build("net.onnx", "new", options=BuildOptions(backend="onnxruntime"))
    assert sorted(Path().iterdir()) == before


def test_names_within_the_limit(tmp_path: Path) -> None:
    check_folder(tmp_path / ("x" * 230))
    with pytest.raises(InputError, match="embedded null"):
        check_folder(tmp_path / "a\0b")

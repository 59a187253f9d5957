"""Writing bundles: there whole or not at all, whatever happens in between."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import trtkp
from trtkp.bundle import BundleWriter, Manifest
from trtkp.bundle.manifest import FileRecord
from trtkp.cli import main
from trtkp.errors import InputError, JobError

ROOT = Path(__file__).parents[2]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def others(target: Path) -> list[str]:
    """What lies beside a bundle."""
    return sorted(path.name for path in target.parent.iterdir() if path != target)


def publish(target: Path, manifest: Manifest, text: str = "new") -> None:
    """A bundle of one file."""
    with BundleWriter(target) as writer:
        (writer.staging / "model.onnx").write_text(text)
        writer.publish(lambda files: manifest.model_copy(update={"files": files}))


@pytest.fixture(scope="session")
def manifest(built: Path) -> Manifest:
    return trtkp.load(built).manifest


@pytest.fixture
def alone(bundle: Path) -> Path:
    """A bundle in a folder of its own."""
    folder = bundle.parent / "folder"
    folder.mkdir()
    return bundle.rename(folder / "bundle")


def test_new_bundle_in_new_folders(tmp_path: Path, manifest: Manifest) -> None:
    target = tmp_path / "a" / "b" / "bundle"
    publish(target, manifest)
    assert trtkp.load(target).file("model.onnx").read_text() == "new"
    assert others(target) == []


@pytest.mark.parametrize("name", ["bundle", "[x]*?", "-o", "a b", "ü"])
def test_old_bundle_is_replaced(tmp_path: Path, manifest: Manifest, name: str) -> None:
    target = tmp_path / name
    publish(target, manifest, "old")
    publish(target, manifest, "new")
    assert trtkp.load(target).file("model.onnx").read_text() == "new"
    assert others(target) == []


def test_empty_folder_is_taken(tmp_path: Path, manifest: Manifest) -> None:
    (tmp_path / "bundle").mkdir()
    publish(tmp_path / "bundle", manifest)
    assert trtkp.load(tmp_path / "bundle").manifest.method == "kep"


class Boom(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("error", [Boom(), KeyboardInterrupt(), InputError("x")])
def test_exception_leaves_the_old_bundle(alone: Path, error: BaseException) -> None:
    before = content(alone)

    def write() -> None:
        with BundleWriter(alone) as writer:
            (writer.staging / "model.onnx").write_text("half")
            raise error

    with pytest.raises(type(error)):
        write()
    assert content(alone) == before
    assert others(alone) == []


def test_failing_manifest_leaves_the_old_bundle(alone: Path) -> None:
    before = content(alone)

    def full(files: dict[str, FileRecord]) -> Manifest:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(JobError, match=r"No space left on device.*nothing was changed; free some space") as caught:  # noqa: SIM117
        with BundleWriter(alone) as writer:
            writer.publish(full)
    assert caught.value.file == str(alone)
    assert content(alone) == before
    assert others(alone) == []


def test_failing_rename_brings_the_old_bundle_back(
    alone: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, rename = content(alone), Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if ".building-" in self.name:
            raise OSError(errno.EACCES, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    monkeypatch.setattr("trtkp.bundle.writer.exchange", lambda one, other: False)
    with pytest.raises(JobError, match="Permission denied"):
        publish(alone, manifest)
    assert content(alone) == before
    assert others(alone) == []


# --- what may be replaced ---------------------------------------------------------------------------------------------


def test_file_link_and_foreign_folders_are_refused(tmp_path: Path, built: Path, manifest: Manifest) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(built)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("mine")
    (tmp_path / "extension").mkdir()  # manifest.json is a common name
    (tmp_path / "extension" / "manifest.json").write_text('{"manifest_version": 3, "files": {}}')
    for name, words in (
        ("file", "not a directory"),
        ("link", "not a directory"),
        ("dangling", "not a directory"),
        ("folder", "not a trtkp bundle"),
        ("extension", "not a trtkp bundle"),
        ("file/below", "cannot be written|not a directory"),
        ("x" * 300, "cannot be written"),
    ):
        with pytest.raises(InputError, match=words):
            publish(tmp_path / name, manifest)
    assert (tmp_path / "file").read_text() == "mine"
    assert (tmp_path / "folder" / "thesis.tex").read_text() == "mine"
    assert (tmp_path / "extension" / "manifest.json").exists()
    assert (tmp_path / "link").is_symlink()
    assert len(list(tmp_path.iterdir())) == 5


def test_bundle_with_a_file_of_the_user_is_refused(alone: Path, manifest: Manifest) -> None:
    (alone / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"is a bundle with a file that its manifest does not list, notes\.txt"):
        publish(alone, manifest)
    assert (alone / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("damage", ["engine.onnx", "manifest.sha256"])
def test_damaged_bundle_can_be_built_again(alone: Path, manifest: Manifest, damage: str) -> None:
    (alone / damage).write_bytes(b"damaged")
    publish(alone, manifest)
    assert trtkp.load(alone).file("model.onnx").read_text() == "new"


def _bound_by_permissions() -> None:
    """In a child before it starts: root, too, is refused what a folder's mode forbids."""
    if os.geteuid() == 0:
        drop_from_bounding_set, dac_override = 24, 1
        assert ctypes.CDLL(None, use_errno=True).prctl(drop_from_bounding_set, dac_override, 0, 0, 0) == 0


def test_parent_without_write_permission(tmp_path: Path, classifier: Path) -> None:
    parent = tmp_path / "parent"
    parent.mkdir()
    parent.chmod(0o555)
    try:
        result = subprocess.run(
            [sys.executable, "-m", "trtkp", "build", str(classifier), "-o", str(parent / "bundle")],
            cwd=ROOT, capture_output=True, text=True, check=False, preexec_fn=_bound_by_permissions,
        )  # fmt: skip
    finally:
        parent.chmod(0o755)
    assert result.returncode == 2, result.stderr
    assert "Permission denied" in result.stderr
    assert list(parent.iterdir()) == []


def test_a_disk_that_cannot_be_written(manifest: Manifest) -> None:
    with pytest.raises((InputError, JobError), match="cannot be written"):
        publish(Path("/proc/trtkp/bundle"), manifest)


# --- killed -----------------------------------------------------------------------------------------------------------

_PUBLISH_AND_DIE = """
import os, signal, sys
from pathlib import Path
import trtkp
import trtkp.bundle.writer as writer_module
from trtkp.bundle import BundleWriter

source, target, step = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
manifest = trtkp.load(source).manifest
rename, steps = Path.rename, []

def die_after(self, to):
    if len(steps) == step:
        os.kill(os.getpid(), signal.SIGKILL)
    steps.append(rename(self, to))
    if len(steps) == step:
        os.kill(os.getpid(), signal.SIGKILL)

def in_one_step(one, other):
    if step == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    done = exchange(one, other)
    assert done
    os.kill(os.getpid(), signal.SIGKILL)

Path.rename = die_after
exchange = writer_module.exchange
writer_module.exchange = in_one_step if sys.argv[4] == "exchange" else lambda one, other: False
with BundleWriter(target) as writer:
    (writer.staging / "model.onnx").write_text("new")
    writer.publish(lambda files: manifest.model_copy(update={"files": files}))
"""


@pytest.mark.parametrize(
    ("renames", "way", "there"),
    [
        (0, "renames", "old"),
        (1, "renames", None),
        (2, "renames", "new"),
        (0, "exchange", "old"),
        (1, "exchange", "new"),
    ],
)
def test_killed_while_the_bundles_change_places(
    alone: Path, built: Path, manifest: Manifest, renames: int, way: str, there: str | None
) -> None:
    if way == "exchange" and sys.platform != "linux":
        pytest.skip("directories are exchanged in one step on Linux only")
    before = content(alone)
    child = subprocess.run(
        [sys.executable, "-c", _PUBLISH_AND_DIE, str(built), str(alone), str(renames), way],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert child.returncode == -signal.SIGKILL, child.stderr
    if there == "old":
        assert content(alone) == before
    elif there == "new":
        assert trtkp.load(alone).file("model.onnx").read_text() == "new"
    else:
        assert not alone.exists()
        assert content(next(alone.parent.glob(".bundle.replaced-*"))) == before
    assert others(alone)  # something is left
    with contextlib.suppress(Boom), BundleWriter(alone):
        raise Boom  # a build that fails early brings the old bundle back all the same
    assert content(alone) == before if there != "new" else trtkp.load(alone)
    assert others(alone) == []
    publish(alone, manifest)
    assert trtkp.load(alone).file("model.onnx").read_text() == "new"
    assert others(alone) == []


@pytest.mark.slow
@pytest.mark.parametrize("moment", [".", "index_sets.safetensors", "model.onnx", "engine.onnx"])
def test_killed_build_leaves_the_old_bundle(alone: Path, classifier: Path, moment: str) -> None:
    before = content(alone)
    command = [sys.executable, "-m", "trtkp", "build", str(classifier), "-o", str(alone), "--share", "per-layer"]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while child.poll() is None and not list(alone.parent.glob(f".bundle.building-*/{moment}")):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    child.kill()
    _, err = child.communicate()
    assert child.returncode == -signal.SIGKILL, err
    assert content(alone) == before
    assert list(alone.parent.glob(".bundle.building-*"))
    trtkp.build(classifier, alone, method="none")
    assert trtkp.load(alone).manifest.method == "none"
    assert others(alone) == []


# --- two at once ------------------------------------------------------------------------------------------------------

_BUILD_AND_WAIT = """
import sys
import trtkp

def wait(phase, done, total):
    if (phase, done) == ("Plan", 0):
        print("waiting", flush=True)
        sys.stdin.readline()

trtkp.build(sys.argv[1], sys.argv[2], method="none", progress=wait)
"""


def test_second_build_fails_at_once_and_the_first_wins(
    classifier: Path, alone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(alone)
    first = subprocess.Popen(
        [sys.executable, "-c", _BUILD_AND_WAIT, str(classifier), str(alone)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "waiting\n"
        # the first writes until the end of this block: who waited for it would never come back
        assert main(["build", str(classifier), "-o", str(alone)]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err == f"error: {alone}: another build is writing here; wait for it, or choose another -o\n"
        assert content(alone) == before
    finally:
        first.communicate("go\n", timeout=60)
    assert first.returncode == 0
    assert trtkp.load(alone).manifest.method == "none"
    assert others(alone) == []


@pytest.mark.slow
def test_builds_into_one_folder_from_nothing(classifier: Path, tmp_path: Path) -> None:
    target = tmp_path / "folder" / "bundle"
    command = [sys.executable, "-m", "trtkp", "build", str(classifier), "-o", str(target), "--method", "none"]
    children = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    results = [(child.communicate(timeout=120)[1], child.returncode) for child in children]
    assert {code for _, code in results} <= {0, 1}
    assert 0 in {code for _, code in results}
    for err, code in results:
        assert code == 0 or (err.count("\n") == 1 and "another build is writing here" in err)
    assert trtkp.load(target).manifest.method == "none"
    assert others(target) == []


# --- a full disk ------------------------------------------------------------------------------------------------------


def assert_full(result: subprocess.CompletedProcess[str], target: Path, before: dict[str, bytes]) -> None:
    assert result.returncode == 1, result.stderr
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith(f"error: {target}: cannot be written (")
    assert "free some space" in result.stderr
    assert (content(target) if target.exists() else {}) == before
    assert others(target) == []


# In the index sets, in model.onnx and in engine.onnx.
@pytest.mark.parametrize(("limit", "old"), [(100, True), (20_000, False), (45_000, True)])
def test_file_size_limit(alone: Path, classifier: Path, limit: int, old: bool) -> None:
    target = alone if old else alone.parent / "sub" / "new"
    target.parent.mkdir(exist_ok=True)
    before = content(target) if old else {}
    result = subprocess.run(
        [sys.executable, "-m", "trtkp", "build", str(classifier), "-o", str(target), "--lowering", "dense"],
        cwd=ROOT, capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert_full(result, target, before)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 80 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=80k", "trtkp-test", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no small file system can be mounted: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_full_file_system(small_disk: Path, classifier: Path) -> None:
    target = small_disk / "bundle"
    result = subprocess.run(
        [sys.executable, "-m", "trtkp", "build", str(classifier), "-o", str(target)],
        cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert_full(result, target, {})

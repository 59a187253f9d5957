"""Standard output and error that cannot take what is written: the work is done all the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import trtkp
from trtkp.cli import main

ROOT = Path(__file__).parents[2]

#: Command lines with tables, progress, errors and help.
COMMANDS = (
    "--help",
    "build --help",
    "build net.onnx -b onnxruntime -o new/kep --share per-layer",
    "calibrate dense --data data.npz -o new/int8",
    "prune net.onnx --method vskp --ratio 0.5 --filter-group 8 -o new/pruned",
    "inspect taps",
    "verify taps",
    "bench taps --runs 2",
    "compare dense taps --runs 2 --openings 1 --no-layers",
    "doctor",
    "export-triton dense -o new/repository",
    "inspect nothing-→-é",
    "build net.onnx --bogus-→",
)

_ALL = """
import sys
from trtkp.cli import main
print(*[main(line.split()) for line in open("lines", encoding="utf-8")], file=open("statuses", "w"))
"""


def child(code: str, **settings: object) -> subprocess.CompletedProcess[bytes]:
    """A Python program in the current folder."""
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": 120, "check": False, **settings}
    given["env"] = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "0", **given.get("env", {})}  # type: ignore[dict-item]
    return subprocess.run([sys.executable, "-c", code], **given)  # type: ignore[call-overload]  # noqa: PLW1510


def trtkp_process(line: str, **settings: object) -> subprocess.CompletedProcess[bytes]:
    """One command in a process of its own."""
    return child(f"import sys; from trtkp.cli import main; sys.exit(main({line.split()!r}))", **settings)


ENCODINGS = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "C": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"},
}


@pytest.mark.slow
@pytest.mark.parametrize("variables", ENCODINGS.values(), ids=ENCODINGS)
def test_every_command_in_any_encoding(folder: Path, variables: dict[str, str]) -> None:
    Path("new").mkdir()
    Path("lines").write_text("\n".join(COMMANDS), encoding="utf-8")
    done = child(_ALL, env=variables)
    assert done.returncode == 0, done.stderr
    statuses = Path("statuses").read_text().split()
    assert statuses == ["0"] * (len(COMMANDS) - 2) + ["2", "2"], (statuses, done.stderr)
    assert b"->" in done.stdout
    assert b"internal error" not in done.stderr
    assert trtkp.verify("new/kep").ok


def test_names_that_are_not_utf8(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Wherever a name is given, it is refused by one line, whatever the encoding of the output."""
    name = os.fsdecode(b"n\xff\xe9t")
    Path("net.onnx").rename(f"{name}.onnx")
    Path("data.npz").rename(f"{name}.npz")
    Path("taps").rename(name)
    for line in (
        f"build {name}.onnx -o new",
        f"build dense/engine.onnx -o {name}2",
        f"build dense/engine.onnx -o new --data {name}.npz",
        f"inspect {name}",
        f"verify {name} --json",
        f"compare dense {name}",
        f"compare dense --csv {name}.csv",
        f"calibrate dense --data {name}.npz -o new",
        f"calibrate dense --calibration {name} -o new",
        f"prune {name}.onnx -o new",
        f"prune dense/engine.onnx -o new --recipe {name}",
        f"export-triton {name} -o new",
        f"export-triton dense -o {name}2",
    ):
        assert main(line.split()) == 2, line
        out, error = capfd.readouterr()
        assert out == ""
        assert error.count("\n") == 1
        assert "n\\udcff\\udce9t" in error
        assert "the name is not UTF-8; " in error or "no such" in error, (line, error)
    assert not Path("new").exists()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_full_disk_behind_the_output(folder: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = trtkp_process("build net.onnx -b onnxruntime -o new", stdout=full)
        assert done.returncode == 1
        wanted = b"error: standard output cannot be written (No space left on device); free some space\n"
        assert [line for line in done.stderr.splitlines(keepends=True) if not line.startswith(b"warning")] == [wanted]
        assert trtkp.verify("new").ok
        for line, status in (("inspect taps", 0), ("inspect nothing", 2), ("build net.onnx -o mine -b onnxruntime", 0)):
            assert trtkp_process(line, stderr=full).returncode == status
    assert trtkp.verify("mine").ok


@pytest.mark.slow
def test_reader_of_the_output_is_gone(folder: Path) -> None:
    for line, status in (("build net.onnx -b onnxruntime -o new", 141), ("--help", 141), ("inspect nothing", 2)):
        reader, writer = os.pipe()
        os.close(reader)
        done = trtkp_process(line, stdout=writer, stderr=writer)
        os.close(writer)
        assert done.returncode == status
    assert trtkp.verify("new").ok


@pytest.mark.slow
@pytest.mark.parametrize("closed", [1, 2])
def test_closed_before_the_start(folder: Path, closed: int) -> None:
    for line, status in (("build net.onnx -b onnxruntime -o new", 0), ("--help", 0), ("inspect nothing", 2)):
        done = trtkp_process(line, stdout=None, stderr=None, preexec_fn=lambda: os.close(closed))
        assert done.returncode == status
    assert trtkp.verify("new").ok

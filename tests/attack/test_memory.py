"""Builds of large weights: their peak of memory, and what happens where memory does not suffice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import onnx_ir as ir
import pytest

from benchmarks.cpu.graph_sizes import convolutions, large
from trtkp.errors import JobError, is_out_of_memory
from trtkp.graph import save
from trtkp.pipeline.job import SinglePhase

ROOT = Path(__file__).parents[2]
#: Sixteen layers of 9 MiB.
WEIGHTS_MIB = 144


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of `WEIGHTS_MIB` in a data file, and a small one beside it."""
    folder = tmp_path_factory.mktemp("large")
    save.save_graph(ir.from_proto(convolutions(2)), folder / "small.onnx")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(save, "LARGEST_FILE", 1 << 20)
        save.save_graph(large(16, channels=512), folder / "model.onnx")
    assert (folder / "model.onnx.data").stat().st_size >= WEIGHTS_MIB << 20
    return folder / "model.onnx"


def build(model: Path, output: Path, mebibytes: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.attack.building", str(model), str(output), str(mebibytes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUTF8": "1", "XDG_CACHE_HOME": str(output.parent)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
@pytest.mark.serial
def test_a_build_needs_about_three_times_the_weights(model: Path, tmp_path: Path) -> None:
    done = build(model, tmp_path / "out", 0)
    assert done.returncode == 0, done.stderr
    # 2.7 times 2.3 GiB; for weights as small as these, what the libraries need for themselves counts too.
    assert json.loads(done.stdout.splitlines()[-1])["mebibytes"] < 4 * WEIGHTS_MIB


@pytest.mark.slow
@pytest.mark.parametrize("mebibytes", [10, 100, 200])
def test_too_little_memory_is_one_line(model: Path, tmp_path: Path, mebibytes: int) -> None:
    done = build(model, tmp_path / "out", mebibytes)
    assert done.returncode == 1, done.stderr
    line = next(line for line in done.stderr.splitlines() if line.startswith("error:"))
    assert done.stderr.endswith(f"{line}\n")
    assert line.startswith(f"error: {model}: out of memory while ")
    assert "free some, or raise the limit" in line
    assert not [path.name for path in tmp_path.iterdir() if "out" in path.name]


def raised(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (OSError(12, "Cannot allocate memory"), True),
        (RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : std::bad_alloc"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"), True),
        (ValueError("Failed to serialize proto"), True),
        (raised(ValueError("pass failed"), MemoryError()), True),
        (OSError(28, "No space left on device"), False),
        (JobError("out of memory is only a name here", file="out of memory.onnx"), False),
    ],
)
def test_what_means_too_little_memory(error: BaseException, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


def test_the_phase_is_named() -> None:
    phases = SinglePhase("calibrate", Path("net"))
    with pytest.raises(JobError, match="net: out of memory while building the engine; a build needs"), phases("build"):
        raise RuntimeError("std::bad_alloc")
    with pytest.raises(JobError, match="as it is"), phases("build"):
        raise JobError("as it is")

"""The dynamic pattern convolution: random layers, emulated under sanitizers, and what its interface refuses."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any

import pytest

from .cases import TOLERANCE
from .dynamic_cases import DYNAMIC_TACTICS, DynamicCase, random_dynamic_case
from .programs import build, run
from .test_kernels import compare

#: As many random layers as of each tier in the slow target; a share in ``make test``.
CASES = max(36, int(os.environ.get("TRTKP_EMULATION_CASES", "0")))
INVALID, UNSUPPORTED = 1, 2
TENSORS = ("x", "weight", "attention", "index", "bias", "residual", "y", "workspace")


@pytest.fixture(scope="session")
def run_dynamic() -> Path:
    """The C interface with emulated kernels."""
    return build("run_dynamic")


def check(
    case: DynamicCase, seed: int, program: Path, oracle: Any, folder: Path, tactic: str = "dynamic_64x64"
) -> None:
    """Runs a case and compares, as `test_kernels.check`."""
    case.write(folder / "case", tactic, seed)
    done = run(program, folder / "case", folder / "y")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    compare(*case.read(folder / "y"), case.want(oracle), TOLERANCE.get(case.dtype, 1e-6))


@pytest.mark.parametrize("number", range(CASES))
def test_random_layer(number: int, run_dynamic: Path, oracle: Any, tmp_path: Path) -> None:
    tactic = list(DYNAMIC_TACTICS)[number % 3]
    dtypes = ("float32", "float16", "bfloat16") if tactic == "dynamic_reference" else ("float16", "bfloat16")
    case = random_dynamic_case(number, dtype=dtypes[number // 3 % len(dtypes)], whole=tactic != "dynamic_reference")
    check(case, zlib.crc32(b"dynamic %d" % number), run_dynamic, oracle, tmp_path, tactic)


def launch(program: Path, folder: Path, spoilt: tuple[str, ...] = (), **changes: int) -> tuple[int, str]:
    """Status and output of a good layer with a field, of the description or of its conv, or a pointer spoilt."""
    seeds = (s for s in range(100) if (c := random_dynamic_case(s, dtype="float16", whole=True)).bias is not None
             and c.residual is not None and c.x[0].size > 64)  # fmt: skip
    case = random_dynamic_case(next(seeds), dtype="float16", whole=True)
    desc = case.desc()
    for name, value in changes.items():
        setattr(desc if hasattr(desc, name) and name != "structSize" else desc.conv, name, value)
    case.write(folder / "case", "dynamic_64x64", 1, desc)
    done = run(program, folder / "case", folder / "y", *spoilt)
    assert "ERROR" not in done.stderr
    return done.returncode, done.stdout


def test_tactics(run_dynamic: Path, tmp_path: Path) -> None:
    status, output = launch(run_dynamic, tmp_path)
    assert (status, output.split()) == (0, list(DYNAMIC_TACTICS))
    status, output = launch(run_dynamic, tmp_path, dataType=0)
    assert status == UNSUPPORTED
    assert output.splitlines() == ["dynamic_reference", "error: tactic dynamic_64x64 needs float16 or bfloat16"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"interfaceVersion": 9}, "desc.interfaceVersion is 9, not 2"),
        ({"reserved": 1}, "desc.reserved is not 0"),
        ({"patterns": 0}, "patterns is 0, not in [1, 1024]"),
        ({"patterns": 1025}, "patterns is 1025"),
        ({"listKind": 0}, "conv.listKind is 0, not TRTKP_TAPS"),
        ({"listGroups": 2}, "conv.listGroups is 2, not 1"),
        ({"rows": 200}, "conv.rows is 200, not filters"),
        ({"twoFour": 1}, "conv.twoFour is not 0"),
        ({"batch": 65536}, "conv.batch is 65536, more than 65535; split the batch"),
        ({"height": 0}, "height is 0"),
        ({"yPitch": 1}, "yPitch (1) is less than filters"),
    ],
)
def test_a_bad_description_is_refused(changes: dict[str, int], message: str, run_dynamic: Path, tmp_path: Path) -> None:
    status, output = launch(run_dynamic, tmp_path, (), **changes)
    assert status == INVALID
    assert message in output


@pytest.mark.parametrize("name", TENSORS)
def test_a_bad_pointer_is_refused(name: str, run_dynamic: Path, tmp_path: Path) -> None:
    number = str(TENSORS.index(name))
    missing = f"{name} is null, unlike has" if name in ("bias", "residual") else f"{name} is null"
    assert missing in launch(run_dynamic, tmp_path, ("null", number))[1]
    status, output = launch(run_dynamic, tmp_path, ("misaligned", number))
    assert (status, f"{name} is not aligned to {4 if name == 'index' else 16} bytes" in output) == (INVALID, True)
    if name != "y":
        status, output = launch(run_dynamic, tmp_path, ("y", number))
        assert (status, f"y overlaps {name}" in output) == (INVALID, True)


def test_a_workspace_too_small_is_refused(run_dynamic: Path, tmp_path: Path) -> None:
    status, output = launch(run_dynamic, tmp_path, ("short", "7"))
    assert (status, "workspaceBytes is " in output) == (INVALID, True)

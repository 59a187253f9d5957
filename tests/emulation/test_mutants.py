"""Faults planted in a copy of the kernels: each must make random layers fail."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .cases import BASES, random_case
from .programs import COMPILER, FLAGS, PROGRAMS, ROOT
from .test_kernels import check

#: Name to file, the text to replace (white space as it comes) and what replaces it.
MUTANTS = {
    "no barrier in the main loop": (
        "mma.cuh",
        "that the step before has read. __syncthreads();",
        "",
    ),
    "no barrier before the epilogue": (
        "mma.cuh",
        "ptx::copyAsyncWait<0>(); __syncthreads();",
        "ptx::copyAsyncWait<0>();",
    ),
    "waits for one copy too few": (
        "mma.cuh",
        "copyAsyncWait<Tile::kStages - 2>",
        "copyAsyncWait<Tile::kStages - 1>",
    ),
    "overwrites the stage being read": (
        "mma.cuh",
        "loader.load(ahead % Tile::kStages",
        "loader.load(step % Tile::kStages",
    ),
    "reads channels past C": (
        "mma.cuh",
        "left >= 8 ? 16 : (left > 0 ? 2 * left : 0)",
        "left > 0 ? 16 : 0",
    ),
    "reads weights past the last": (
        "mma.cuh",
        "isSelected ? (mFirstRow + row) * mProblem.columns : 0",
        "(mFirstRow + row) * mProblem.columns, mBytesB[i] = 16",
    ),
    "ignores the right edge": (
        "mma.cuh",
        "static_cast<uint32_t>(mProblem.width);",
        "0xffffffffU;",
    ),
    "swizzles only the writes": (
        "mma.cuh",
        "b + swizzled(row, k * 2 + lane / 8 % 2)",
        "b + row * 32 + 8 * (k * 2 + lane / 8 % 2)",
    ),
    "leaves the padded channels": (
        "mma.cuh",
        "rowTile == rowTiles - 1 && problem.splits == 1",
        "rowTile == rowTiles",
    ),
    "forgets the ONNX group": (
        "mma.cuh",
        "/ (mProblem.filters / mProblem.groups) * mProblem.channels",
        "* 0",
    ),
    "splits overlap": (
        "mma.cuh",
        "allSteps * (split + 1) / problem.splits - firstStep",
        "allSteps * (split + 1) / problem.splits - firstStep + (split == 0)",
    ),
    "forgets a split": (
        "store.cuh",
        "(blockIdx.y * pixels + pixel)",
        "(blockIdx.y / 2 * pixels + pixel)",
    ),
    "steps past a list's end": (
        "chunk_cursor.cuh",
        "mHasEntry = mOuter < mOuterLength;",
        "mHasEntry = true;",
    ),
}


def mutated_program(folder: Path, objects: Path, file: str, old: str, new: str) -> Path:
    """run_conv with the 64x32 tile compiled from changed kernels and all else as it is."""
    kernels = folder / "plugins/kernels"
    shutil.copytree(ROOT / "plugins/kernels", kernels)
    pattern = r"\s+".join(map(re.escape, old.split()))
    text, count = re.subn(pattern, lambda _: new, (kernels / file).read_text())
    assert count == 1
    (kernels / file).write_text(text)

    mutated = kernels / "launch_mma_64x32.cu"
    flags = [COMPILER, *FLAGS, "-Wno-error", "-o"]
    subprocess.run([*flags, str(folder / "o"), "-x", "c++", "-c", str(mutated)], check=True, capture_output=True)
    rest = [objects / f"{source.name}.o" for source in PROGRAMS["run_conv"] if source.name != mutated.name]
    subprocess.run([*flags, str(folder / "run"), str(folder / "o"), *map(str, rest)], check=True)
    return folder / "run"


def failing_layers(program: Path, oracle: Any, folder: Path, seeds: range) -> Iterator[int]:
    """The seeds that fail, of layers for the tactic mma_64x32, or split where the list is long enough."""
    for seed in seeds:
        case = random_case(seed, base=BASES[seed % 3], dtype="float16", blocks=True)
        try:
            tactic = "mma_64x32_split4" if case.packed.weight.shape[1] >= 128 and seed % 2 else "mma_64x32"
            check(case, tactic, seed + 1, program, oracle, folder)
        except AssertionError:
            yield seed


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_fault_is_caught(name: str, run_conv: Path, oracle: Any, tmp_path: Path) -> None:
    program = mutated_program(tmp_path, run_conv.parent, *MUTANTS[name])
    assert next(failing_layers(program, oracle, tmp_path, range(40)), None) is not None


@pytest.mark.slow
def test_a_harmless_change_passes(run_conv: Path, oracle: Any, tmp_path: Path) -> None:
    """So it is the fault that the tests above catch, not the copy."""
    program = mutated_program(tmp_path, run_conv.parent, "mma.cuh", "problem.splits == 1)", "problem.splits <= 1)")
    assert list(failing_layers(program, oracle, tmp_path, range(12))) == []

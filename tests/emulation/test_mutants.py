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
from .dynamic_cases import random_dynamic_case
from .programs import COMPILER, FLAGS, PROGRAMS, ROOT, build
from .test_dynamic import check as check_dynamic
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


#: The same for T4: the launcher that is compiled again, then as above.
SPARSE_MUTANTS = {
    "no barrier in the main loop": (
        "sparse_64x64",
        "sparse.cuh",
        "that the step before has read. __syncthreads();",
        "",
    ),
    "waits for one copy too few": (
        "sparse_64x64",
        "sparse.cuh",
        "copyAsyncWait<Tile::kStages - 2>",
        "copyAsyncWait<Tile::kStages - 1>",
    ),
    "metadata of the other half": (
        "sparse_64x64",
        "sparse.cuh",
        "multiplyHalf<Tile, T, 1>(sums, pixels, rows, metadata, lane)",
        "multiplyHalf<Tile, T, 0>(sums, pixels, rows, metadata, lane)",
    ),
    "metadata past the last block": (
        "sparse_64x64",
        "sparse.cuh",
        "(block < lastBlock ? block : lastBlock)",
        "block",
    ),
    "metadata of the next step": (
        "sparse_64x64",
        "sparse.cuh",
        "mAtMetadata + step * 32",
        "mAtMetadata + (step + 1 < mSteps ? step + 1 : step) * 32",
    ),
    "weights of another group": (
        "sparse_64x64",
        "sparse.cuh",
        "mBytesW[i] = isSelected ? 16 : 0;",
        "mBytesW[i] = 16;",
    ),
    "pixels and rows not turned": (
        "sparse_64x64",
        "sparse.cuh",
        "staging + lane % 4 * 2 * kPitch + i * 16 + lane / 4;",
        "staging + lane / 4 * kPitch + i * 16 + lane % 4 * 2;",
    ),
    "no barrier within the epilogue": (
        "sparse_64x64",
        "sparse.cuh",
        "to[kPitch + 8] = d[3]; } __syncwarp();",
        "to[kPitch + 8] = d[3]; }",
    ),
    "reads channels past C": (
        "sparse_64x64",
        "sparse.cuh",
        "left >= 8 ? 16 : (left > 0 ? 2 * left : 0)",
        "left > 0 ? 16 : 0",
    ),
    "columns of the step before": (
        "sparse_singles_64x64",
        "sparse.cuh",
        "mShared.columns[step % 2][mChunk * 8 + c]",
        "mShared.columns[0][mChunk * 8 + c]",
    ),
    "gathers outside the image": (
        "sparse_singles_64x64",
        "sparse.cuh",
        "isInside(i, column) ? x[mAt[i] + column.at] : 0U",
        "x[mAt[i] + column.at]",
    ),
    "stores before it may": (
        "sparse_singles_64x64",
        "sparse.cuh",
        "loader.gather(firstStep + ahead);",
        "loader.gather(firstStep + ahead); loader.storeGathered((ahead + 1) % Tile::kStages);",
    ),
}


def mutated_program(
    folder: Path, objects: Path, file: str, old: str, new: str, launcher: str = "mma_64x32", program: str = "run_conv"
) -> Path:
    """A program with one launcher (by default of the 64x32 tile) compiled from changed kernels, all else as it is."""
    kernels = folder / "plugins/kernels"
    shutil.copytree(ROOT / "plugins/kernels", kernels)
    pattern = r"\s+".join(map(re.escape, old.split()))
    text, count = re.subn(pattern, lambda _: new, (kernels / file).read_text())
    assert count == 1
    (kernels / file).write_text(text)

    mutated = kernels / f"launch_{launcher}.cu"
    flags = [COMPILER, *FLAGS, "-Wno-error", "-o"]
    subprocess.run([*flags, str(folder / "o"), "-x", "c++", "-c", str(mutated)], check=True, capture_output=True)
    rest = [objects / f"{source.name}.o" for source in PROGRAMS[program] if source.name != mutated.name]
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


def failing_sparse_layers(program: Path, oracle: Any, folder: Path, tactic: str, seeds: range) -> Iterator[int]:
    """The seeds that fail, of layers with 2:4 weights."""
    blocks = "singles" not in tactic
    for seed in seeds:
        case = random_case(seed, base=BASES[seed % 3], dtype="float16", blocks=blocks, two_four=True)
        try:
            check(case, tactic, seed + 1, program, oracle, folder)
        except AssertionError:
            yield seed


@pytest.mark.slow
@pytest.mark.parametrize("name", SPARSE_MUTANTS)
def test_a_fault_planted_in_t4_is_caught(name: str, run_conv: Path, oracle: Any, tmp_path: Path) -> None:
    launcher, file, old, new = SPARSE_MUTANTS[name]
    program = mutated_program(tmp_path, run_conv.parent, file, old, new, launcher)
    assert next(failing_sparse_layers(program, oracle, tmp_path, launcher, range(40)), None) is not None


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["sparse_64x64", "sparse_singles_64x64"])
def test_a_harmless_change_of_t4_passes(launcher: str, run_conv: Path, oracle: Any, tmp_path: Path) -> None:
    change = ("sparse.cuh", "problem.splits == 1)", "problem.splits <= 1)")
    program = mutated_program(tmp_path, run_conv.parent, *change, launcher=launcher)
    assert list(failing_sparse_layers(program, oracle, tmp_path, launcher, range(9))) == []


#: Faults in the dynamic pattern: launcher, file, text, and what replaces it.
DYNAMIC_MUTANTS = {
    "weights of the first sample": (
        "dynamic_64x64",
        "dynamic.cuh",
        "+ n * one.filters * one.columns",
        "",
    ),
    "one sample too many": (
        "aggregate",
        "dynamic.cuh",
        "T* const to = static_cast<T*>(problem.weight) + (firstSample + s)",
        "T* const to = static_cast<T*>(problem.weight) + (firstSample + s + 1)",
    ),
    "attention of another sample": (
        "aggregate",
        "dynamic.cuh",
        "static_cast<int64_t>(firstSample + s) * problem.patterns + p",
        "static_cast<int64_t>(firstSample) * problem.patterns + p",
    ),
    "forgets a pattern": (
        "aggregate",
        "dynamic.cuh",
        "p < problem.patterns",
        "p < problem.patterns - 1",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DYNAMIC_MUTANTS)
def test_a_fault_planted_in_the_dynamic_pattern_is_caught(
    name: str, program_folder: Path, oracle: Any, tmp_path: Path
) -> None:
    build("run_dynamic", program_folder)
    launcher, file, old, new = DYNAMIC_MUTANTS[name]
    program = mutated_program(tmp_path, program_folder, file, old, new, launcher, "run_dynamic")
    failed = []
    for seed in range(12):
        try:
            check_dynamic(random_dynamic_case(seed, dtype="float16", whole=True), seed + 1, program, oracle, tmp_path)
        except AssertionError:
            failed.append(seed)
            break
    assert failed

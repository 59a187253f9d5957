"""Faults planted in a copy of the kernels: each must make random layers fail."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .cases import BASES, TACTIC, random_case
from .dynamic_cases import random_dynamic_case
from .programs import COMPILER, FLAGS, PROGRAMS, ROOT, build
from .test_dynamic import check as check_dynamic
from .test_kernels import check

#: Name to file, the text to replace (white space as it comes) and what replaces it.
MUTANTS = {
    "no barrier in the main loop": (
        "mma.cuh",
        "that the previous step has read. __syncthreads();",
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
        "place.hasLastRows && problem.splits == 1",
        "!place.hasLastRows && problem.splits == 1",
    ),
    "forgets the ONNX group": (
        "tile.cuh",
        "/ (problem.filters / problem.groups) * problem.channels",
        "* 0",
    ),
    "splits overlap": (
        "tile.cuh",
        "allSteps * (split + 1) / problem.splits - first",
        "allSteps * (split + 1) / problem.splits - first + (split == 0)",
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
    "no barrier in the loop over wide steps": (
        "gemm.cuh",
        "that the previous step has read. __syncthreads();",
        "",
    ),
    "reads units past the list": (
        "gemm.cuh",
        "if (k < problem.columns)",
        "if (k < problem.columns + 64)",
    ),
    "ignores the bottom edge": (
        "gemm.cuh",
        "outside |= isInside ? 0U : 1U << r;",
        "static_cast<void>(isInside);",
    ),
    "skips a warp that has rows": (
        "gemm.cuh",
        "place.warpRow + Tile::kWarpN > rows.begin",
        "place.warpRow >= rows.begin",
    ),
    "reads the units of another window": (
        "gemm.cuh",
        "static_cast<uint32_t>(unit) % (2 * Tile::kThreads)",
        "static_cast<uint32_t>(unit) % Tile::kThreads",
    ),
    "takes the weights of other groups": (
        "block_loader.cuh",
        "ignored & 1U << i",
        "(mColumn >= mColumns ? 1U : 0U)",
    ),
    "swizzles only the reads": (
        "block_loader.cuh",
        "mAtStage = swizzled128(row, chunk);",
        "mAtStage = row * 128 + chunk * 16;",
    ),
    "multiplies what is not TF32": (
        "tensor_sums.cuh",
        "fragment[i] = ptx::roundToTf32(fragment[i]);",
        "",
    ),
    "adds a chunk twice": (
        "tensor_sums.cuh",
        "stage + (mLaneB ^ (k << 5))",
        "stage + (mLaneB ^ (k >> 1 << 6))",
    ),
    "reads pixels as if not swizzled": (
        "simt_sums.cuh",
        "a + swizzled128(mPixel + i * 4, chunk)",
        "a + (mPixel + i * 4) * 128 + chunk * 16",
    ),
    "reads outside of the image": (
        "single_loader.cuh",
        "(pixel.outside & units[e].bits) == 0",
        "(kPaddingUnit & units[e].bits) == 0",
    ),
    "writes the stage being read": (
        "single_loader.cuh",
        "*wordAt(mShared.stages[stage], mWarp",
        "*wordAt(mShared.stages[1 - stage], mWarp",
    ),
    "reads weights past the row": (
        "single_loader.cuh",
        "column < mColumns && isSelected(row)",
        "isSelected(row)",
    ),
    "reads before all is staged": (
        "direct.cuh",
        "channel, count); __syncthreads();",
        "channel, count);",
    ),
    "sums overwrite what is staged": (
        "direct.cuh",
        "count, sums[i]); } } __syncthreads();",
        "count, sums[i]); } }",
    ),
    "reads entries that lanes have not written": (
        "direct.cuh",
        "__syncwarp(); int32_t const found",
        "int32_t const found",
    ),
    "keeps entries of channels that are not staged": (
        "direct.cuh",
        "channel >= 0 && channel < count;",
        "channel >= 0;",
    ),
    "T4: no barrier in the main loop": (
        "sparse.cuh",
        "that the previous step has read. __syncthreads();",
        "",
    ),
    "T4: waits for one copy too few": (
        "sparse.cuh",
        "copyAsyncWait<Tile::kStages - 2>",
        "copyAsyncWait<Tile::kStages - 1>",
    ),
    "T4: metadata of the other half": (
        "sparse.cuh",
        "multiplyHalf<Tile, T, 1>(sums, pixels, rows, metadata, lane)",
        "multiplyHalf<Tile, T, 0>(sums, pixels, rows, metadata, lane)",
    ),
    "T4: metadata past the last block": (
        "sparse.cuh",
        "(block < lastBlock ? block : lastBlock)",
        "block",
    ),
    "T4: metadata of the next step": (
        "sparse.cuh",
        "mAtMetadata + step * 32",
        "mAtMetadata + (step + 1 < mSteps ? step + 1 : step) * 32",
    ),
    "T4: weights of another group": (
        "sparse.cuh",
        "mBytesW[i] = isSelected ? 16 : 0;",
        "mBytesW[i] = 16;",
    ),
    "T4: pixels and rows not turned": (
        "sparse.cuh",
        "staging + lane % 4 * 2 * kPitch + i * 16 + lane / 4;",
        "staging + lane / 4 * kPitch + i * 16 + lane % 4 * 2;",
    ),
    "T4: no barrier within the epilogue": (
        "sparse.cuh",
        "to[kPitch + 8] = d[3]; } __syncwarp();",
        "to[kPitch + 8] = d[3]; }",
    ),
    "T4: reads channels past C": (
        "sparse.cuh",
        "left >= 8 ? 16 : (left > 0 ? 2 * left : 0)",
        "left > 0 ? 16 : 0",
    ),
    "T4: columns of the step before": (
        "sparse.cuh",
        "mShared.columns[step % 2][mChunk * 8 + c]",
        "mShared.columns[0][mChunk * 8 + c]",
    ),
    "T4: gathers outside the image": (
        "sparse.cuh",
        "isInside(i, column) ? x[mAt[i] + column.at] : 0U",
        "x[mAt[i] + column.at]",
    ),
    "T4: stores before it may": (
        "sparse.cuh",
        "loader.gather(firstStep + ahead);",
        "loader.gather(firstStep + ahead); loader.storeGathered((ahead + 1) % Tile::kStages);",
    ),
}

NARROW = ("launchMma64x32", ("mma_64x32", "mma_64x32_split4"))
SPARSE = ("launchSparse64x64", ("sparse_64x64", "sparse_64x64_split4"))
SPARSE_SINGLES = ("launchSparseSingles64x64", ("sparse_singles_64x64",))
#: Fault or file to the launcher that is compiled from the changed kernels, and the tactics that it serves.
TARGETS = {
    "reads the units of another window": ("launchSingle128x16", ("single_128x16",)),
    "T4: columns of the step before": SPARSE_SINGLES,
    "T4: gathers outside the image": SPARSE_SINGLES,
    "T4: stores before it may": SPARSE_SINGLES,
    "gemm.cuh": ("launchMma64x64K64", ("mma_64x64_k64", "mma_64x64_k64_split4")),
    "block_loader.cuh": ("launchMma64x64K64", ("mma_64x64_k64",)),
    "tensor_sums.cuh": ("launchTf32At64x64", ("tf32_64x64",)),
    "simt_sums.cuh": ("launchSimt64x32", ("simt_64x32",)),
    "single_loader.cuh": ("launchSingle128x16", ("single_128x16",)),
    "direct.cuh": ("launchDirect", ("direct",)),
    "sparse.cuh": SPARSE,
}


def target(name: str) -> tuple[str, tuple[str, ...]]:
    """Launcher and tactics that show a fault."""
    return TARGETS.get(name) or TARGETS.get(MUTANTS[name][0]) or NARROW


def mutated_program(
    folder: Path, objects: Path, launcher: str, file: str, old: str, new: str, program: str = "run_conv"
) -> Path:
    """A program with one launcher compiled from changed kernels and all else as it is."""
    kernels = folder / "plugins/kernels"
    shutil.copytree(ROOT / "plugins/kernels", kernels)
    pattern = r"\s+".join(map(re.escape, old.split()))
    text, count = re.subn(pattern, lambda _: new, (kernels / file).read_text())
    assert count == 1
    (kernels / file).write_text(text)
    # Layers here are float16, or float32 where a launcher takes that: other types would be compiled in vain.
    for path in (kernels / "launch").glob("*.cu*"):
        path.write_text(path.read_text().replace("__nv_bfloat16", "__half"))
    (mutated,) = (path for path in (kernels / "launch").glob("*.cu") if f" {launcher}(" in path.read_text())
    mutated.write_text(only_launcher(mutated.read_text(), launcher))

    flags = [COMPILER, *FLAGS, "-Wno-error", "-o"]
    subprocess.run([*flags, str(folder / "o"), "-x", "c++", "-c", str(mutated)], check=True, capture_output=True)
    # The other tiles of the launcher's file come from the unchanged one. Of two definitions the linker takes the first.
    rest = [objects / f"{source.name}.o" for source in PROGRAMS[program]]
    first = ["-Wl,--allow-multiple-definition", str(folder / "o")]
    subprocess.run([*flags, str(folder / "run"), *first, *map(str, rest)], check=True)
    return folder / "run"


def only_launcher(text: str, launcher: str) -> str:
    """A launcher file without the launchers of other tiles, whose kernels would be compiled in vain."""
    other = re.compile(
        rf"^cudaError_t (?!{launcher}\b)launch\w+\((Conv|Dynamic)Problem const& problem, DataType.*?^}}$",
        re.MULTILINE | re.DOTALL,
    )
    head, begin, launchers = text.rpartition("} // namespace\n")  # a template of the file's own stays
    return head + begin + other.sub("", launchers)


def failing_layers(
    program: Path, oracle: Any, folder: Path, seeds: range, tactics: tuple[str, ...] = NARROW[1]
) -> Iterator[int]:
    """The seeds that fail, of layers for the first tactic, or for the second where the list is long enough."""
    for seed in seeds:
        takes = TACTIC[tactics[0]]
        case = random_case(
            seed, base=BASES[seed % 3], dtype=takes.dtypes[0], blocks=takes.blocks, whole=takes.whole, tf32=takes.tf32,
            two_four=takes.two_four,
        )  # fmt: skip
        try:
            is_long = case.packed.weight.shape[1] >= TACTIC[tactics[-1]].least
            check(case, tactics[-1 if is_long and seed % 2 else 0], seed + 1, program, oracle, folder)
        except AssertionError:
            yield seed


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_fault_is_caught(name: str, run_conv: Path, oracle: Any, tmp_path: Path) -> None:
    launcher, tactics = target(name)
    program = mutated_program(tmp_path, run_conv.parent, launcher, *MUTANTS[name])
    assert next(failing_layers(program, oracle, tmp_path, range(60), tactics), None) is not None


@pytest.mark.slow
@pytest.mark.parametrize("file", ["mma.cuh", "sparse.cuh"])
def test_a_harmless_change_passes(file: str, run_conv: Path, oracle: Any, tmp_path: Path) -> None:
    """So it is the fault that the tests above catch, not the copy."""
    launcher, tactics = TARGETS.get(file, NARROW)
    change = (file, "problem.splits == 1)", "problem.splits <= 1)")
    program = mutated_program(tmp_path, run_conv.parent, launcher, *change)
    assert list(failing_layers(program, oracle, tmp_path, range(12), tactics)) == []


#: Faults in the dynamic pattern: launcher, file, text, and what replaces it.
DYNAMIC_MUTANTS = {
    "weights of the first sample": (
        "launchDynamic64x64",
        "dynamic.cuh",
        "+ n * one.filters * one.columns",
        "",
    ),
    "one sample too many": (
        "launchAggregate",
        "dynamic.cuh",
        "T* const to = static_cast<T*>(problem.weight) + (firstSample + s)",
        "T* const to = static_cast<T*>(problem.weight) + (firstSample + s + 1)",
    ),
    "attention of another sample": (
        "launchAggregate",
        "dynamic.cuh",
        "static_cast<int64_t>(firstSample + s) * problem.patterns + p",
        "static_cast<int64_t>(firstSample) * problem.patterns + p",
    ),
    "forgets a pattern": (
        "launchAggregate",
        "dynamic.cuh",
        "p < problem.patterns",
        "p < problem.patterns - 1",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DYNAMIC_MUTANTS)
def test_a_fault_planted_in_the_dynamic_pattern_is_caught(name: str, oracle: Any, tmp_path: Path) -> None:
    objects = build("run_dynamic").parent
    launcher, file, old, new = DYNAMIC_MUTANTS[name]
    program = mutated_program(tmp_path, objects, launcher, file, old, new, "run_dynamic")
    failed = []
    for seed in range(12):
        try:
            check_dynamic(random_dynamic_case(seed, dtype="float16", whole=True), seed + 1, program, oracle, tmp_path)
        except AssertionError:
            failed.append(seed)
            break
    assert failed

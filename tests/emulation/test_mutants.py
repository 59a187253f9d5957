"""Faults planted in a copy of the kernels: each must make random layers fail."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from .cases import BASES, random_case
from .programs import COMPILER, FLAGS, HERE, LIBRARY, ROOT
from .test_kernels import check

SYNC = "__syncthreads();"

MUTANTS = {
    "no barrier in the main loop": (
        "mma.cuh",
        "// Shows every thread's copies to all, and frees the stage that the step before has read.\n"
        f"                {SYNC}",
        "",
    ),
    "no barrier before the epilogue": ("mma.cuh", f"ptx::copyAsyncWait<0>();\n            {SYNC}", "ptx::copyAsyncWait<0>();"),
    "waits for one copy too few": ("mma.cuh", "copyAsyncWait<Tile::kStages - 2>", "copyAsyncWait<Tile::kStages - 1>"),
    "overwrites the stage being read": (
        "mma.cuh", "int32_t const ahead = step + Tile::kStages - 1;\n                if (ahead < steps)\n"
        "                {\n                    loader.load(ahead % Tile::kStages",
        "int32_t const ahead = step + Tile::kStages - 1;\n                if (ahead < steps)\n"
        "                {\n                    loader.load(step % Tile::kStages",
    ),
    "reads channels past C": ("mma.cuh", "left >= 8 ? 16 : (left > 0 ? 2 * left : 0)", "left > 0 ? 16 : 0"),
    "reads weights past the last": ("mma.cuh", "row < mEnd && mColumn < mProblem.columns", "mColumn < mProblem.columns"),
    "ignores the right edge": ("mma.cuh", "static_cast<uint32_t>(mProblem.width) && bytes > 0", "0xffffffffU && bytes > 0"),
    "swizzles only the writes": ("mma.cuh", "loadMatrixX4(fragmentB[j], b + swizzled(row,", "loadMatrixX4(fragmentB[j], b + (row * 32 +"),
    "leaves the padded channels": ("mma.cuh", "padded > 0)", "padded > 8)"),
    "forgets the ONNX group": ("mma.cuh", "/ (mProblem.filters / mProblem.groups) * mProblem.channels", "* 0"),
    "steps past a list's end": ("chunk_cursor.cuh", "mHasEntry = mOuter < mOuterLength;", "mHasEntry = true;"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_fault_is_caught(name: str, program_folder: Path, run_conv: Path, oracle: Any, tmp_path: Path) -> None:
    assert run_conv.parent == program_folder  # its object files are there
    file, old, new = MUTANTS[name]
    plugins = tmp_path / "plugins"
    shutil.copytree(ROOT / "plugins/kernels", plugins / "kernels")
    text = (plugins / "kernels" / file).read_text()
    assert text.count(old) == 1
    (plugins / "kernels" / file).write_text(text.replace(old, new))

    mutated = "launch_mma_64x32.cu"
    source = plugins / "kernels" / mutated
    flags = [*FLAGS, "-Wno-error"]
    subprocess.run([COMPILER, *flags, "-x", "c++", "-c", str(source), "-o", str(tmp_path / "o")], check=True, capture_output=True)
    rest = [program_folder / f"{s.name}.o" for s in [HERE / "run_conv.cpp", *LIBRARY] if s.name != mutated]
    subprocess.run([COMPILER, *flags, "-o", str(tmp_path / "run"), str(tmp_path / "o"), *map(str, rest)], check=True)

    for seed in range(40):
        case = random_case(seed, base=BASES[seed % 3], dtype="float16", blocks=True)
        try:
            check(case, "mma_64x32", seed + 1, tmp_path / "run", oracle, tmp_path)
        except AssertionError:
            return
    pytest.fail("40 layers passed")

"""nvcc compiles every kernel without spills, and an SM holds as many blocks as a tile intends.

The kernels for sm_80 and sm_90 are those of the wheel's build (`tests.kernels.wheel`). Their main loops are
disassembled too: they copy by cp.async, read by ldmatrix, and issue no more than is recorded.
TRTKP_EVERY_ARCHITECTURE=1 compiles for the other architectures (``make test-architectures``).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence

import pytest

from benchmarks.kernels.loops import find_disassembler
from benchmarks.kernels.resources import (
    ARCHITECTURES,
    COUNTS,
    KERNELS,
    MAX_SHARED,
    Resources,
    compile_resources,
    counts,
    read_resources,
    table,
)
from tests.kernels.wheel import kept_of
from trtkp.kernels.prediction import counts_of

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on PATH: the kernels are not compiled")


def nvcc_release() -> str:
    """V13.0.88 and the like."""
    text = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release [\d.]+, V([\d.]+)", text)
    return found[1] if found else ""


def release_of_counts() -> str:
    """The compiler that the recorded counts come from."""
    return str(json.loads(COUNTS.read_text(encoding="utf-8"))["nvcc"])


#: Kernels in a launcher file: of each tile one for float16 and one for bfloat16, or one for float32. T0, the direct
#: convolution and the sum of splits have three; the aggregation's read 16 bytes, or one value at a time.
KERNELS_OF = {
    "aggregate.cu": 3 * 2,
    "direct.cu": 3,
    "dynamic.cu": 2 * 2 + 3,
    "mma.cu": 4 * 2,
    "mma_k64.cu": 4 * 2,
    "reference.cu": 3,
    "simt.cu": 2,
    "single.cu": 3 * 2 + 2,
    "sparse.cu": 3 * 2,
    "sparse_singles.cu": 2 * 2,
    "split.cu": 3,
    "tf32.cu": 2,
}
#: What `make test` leaves out.
OTHER_ARCHITECTURES = (86, 87, 89, 100, 110, 120)
#: Bytes that nvcc 13.0 spills all the same, with two blocks on an SM: three registers in a loop of 432 instructions.
SPILLED = {(f"single_128x64 {dtype}", sm): 12 for dtype in ("bfloat16", "float16") for sm in (100, 110)}
#: Kernels whose products are matrix instructions.
TENSOR_CORES = re.compile(r"(mma|dynamic|single|single_tf32|tf32|sparse|sparse_singles)_\d+x\d+")


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.name for path in KERNELS.glob("*.cu")))
def test_resources(name: str) -> None:
    rows = read_resources(*kept_of(KERNELS / name))
    check_resources(name, rows, ARCHITECTURES)
    check_loops(rows)


@needs_nvcc
@pytest.mark.slow
@pytest.mark.skipif(
    not os.environ.get("TRTKP_EVERY_ARCHITECTURE"),
    reason="minutes of nvcc: `make test-architectures` compiles for sm_86, 87, 89, 100, 110 and 120",
)
@pytest.mark.parametrize("name", sorted(path.name for path in KERNELS.glob("*.cu")))
def test_resources_on_other_architectures(name: str) -> None:
    rows = compile_resources(KERNELS / name, OTHER_ARCHITECTURES)
    check_resources(name, rows, OTHER_ARCHITECTURES)


def check_resources(name: str, rows: Sequence[Resources], architectures: Sequence[int]) -> None:
    """The kernels of a file take what is intended."""
    print(table(rows))  # noqa: T201 (pytest -rP shows it)
    assert sorted(row.architecture for row in rows) == sorted(KERNELS_OF[name] * list(architectures))
    for row in rows:
        assert row.spill_bytes <= SPILLED.get((row.kernel, row.architecture), 0), row
        assert row.shared_bytes <= MAX_SHARED, row
        assert row.blocks_per_sm >= row.intended_blocks_per_sm, row


#: At least half of what this tile of T1 issues is matrix products or loads of their operands.
BEST_TILE = "mma_128x128_k64"
#: Instructions of a loop that another release of the compiler may add without a change of ours.
COMPILER_SLACK = 1.1


def check_loops(rows: list[Resources]) -> None:
    """Every tensor-core kernel's loop holds what it must, within the budget that is recorded for its tactic."""
    if find_disassembler() is None:
        print("main loops not checked: no nvdisasm; pip install nvidia-cuda-nvdisasm")  # noqa: T201
        return
    for row in rows:
        if not TENSOR_CORES.match(row.kernel):
            assert row.loop is None, row
            continue
        loop = row.loop
        assert loop is not None, row
        assert loop.matrix > 0, row
        assert loop.shared_loads > 0, row
        assert loop.async_copies > 0, row
        assert row.step_columns % 16 == 0, row
        if row.kernel.split()[0] == BEST_TILE:
            assert loop.issue_share >= 0.5, row
        tactic = row.kernel.split()[0]
        budget = counts_of(tactic, row.architecture)
        assert budget is not None, f"{tactic} is not in counts.json: python -m benchmarks.kernels.resources --json ..."
        per_product = loop.instructions / loop.matrix
        assert per_product <= COMPILER_SLACK * budget.instructions / budget.matrix, row
        if release_of_counts() == nvcc_release():
            now = counts([row])[tactic][str(row.architecture)]
            assert now["matrix"] == budget.matrix, f"{tactic}: counts.json is out of date"

"""nvcc compiles every kernel for sm_80 and sm_90 without spills, and an SM holds as many blocks as a tile intends.

The main loops are disassembled too: they copy by cp.async, read by ldmatrix, and issue no more than is recorded.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest

from benchmarks.kernel_loops import find_disassembler
from benchmarks.kernel_resources import (
    ARCHITECTURES,
    COUNTS,
    KERNELS,
    MAX_SHARED,
    Resources,
    compile_resources,
    counts,
    table,
)
from trtkp.kernels.model import counts_of

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on PATH: the kernels are not compiled")


def nvcc_release() -> str:
    """V13.0.88 and the like."""
    text = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release [\d.]+, V([\d.]+)", text)
    return found[1] if found else ""


def release_of_counts() -> str:
    """The compiler that the recorded counts come from."""
    return str(json.loads(COUNTS.read_text(encoding="utf-8"))["nvcc"])


#: Kernels in a file: float16 and bfloat16 everywhere, float32 in the reference.
KERNELS_OF = {"launch_reference.cu": 3}


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.name for path in KERNELS.glob("*.cu")))
def test_resources(name: str) -> None:
    rows = compile_resources(KERNELS / name)
    print(table(rows))  # noqa: T201 (pytest -rP shows it)
    assert len(rows) == KERNELS_OF.get(name, 2) * len(ARCHITECTURES)
    for row in rows:
        assert row.spill_bytes == 0, row
        assert row.shared_bytes <= MAX_SHARED, row
        assert row.blocks_per_sm >= row.intended_blocks_per_sm, row
    check_loops(rows)


#: Instructions of a loop that another release of the compiler may add without a change of ours.
COMPILER_SLACK = 1.1


def check_loops(rows: list[Resources]) -> None:
    """Every tensor-core kernel's loop holds what it must, within the budget that is recorded for its tactic."""
    if find_disassembler() is None:
        print("main loops not checked: no nvdisasm; pip install nvidia-cuda-nvdisasm")  # noqa: T201
        return
    for row in rows:
        if not row.kernel.startswith("mma_"):
            continue
        loop = row.loop
        assert loop is not None, row
        assert loop.matrix > 0, row
        assert loop.shared_loads > 0, row
        assert loop.async_copies > 0, row
        assert row.step_columns % 16 == 0, row
        tactic = row.kernel.split()[0]
        budget = counts_of(tactic, row.architecture)
        assert budget is not None, f"{tactic} is not in counts.json: python -m benchmarks.kernel_resources --json ..."
        per_product = loop.instructions / loop.matrix
        assert per_product <= COMPILER_SLACK * budget.instructions / budget.matrix, row
        if release_of_counts() == nvcc_release():
            now = counts([row])[tactic][str(row.architecture)]
            assert now["matrix"] == budget.matrix, f"{tactic}: counts.json is out of date"

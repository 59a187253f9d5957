"""nvcc compiles every kernel without spills, and an SM holds as many blocks as a tile intends."""

from __future__ import annotations

import shutil

import pytest

from benchmarks.kernel_resources import ARCHITECTURES, KERNELS, SHARED, compile_resources, table

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on PATH: the kernels are not compiled")

#: Kernels in a file: float16 and bfloat16 everywhere, float32 in the reference; 16 bytes and one value at a time.
KERNELS_OF = {"launch_reference.cu": 3, "launch_dynamic_reference.cu": 3, "launch_aggregate.cu": 6}


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.name for path in KERNELS.glob("*.cu")))
def test_resources(name: str) -> None:
    rows = compile_resources(KERNELS / name)
    print(table(rows))  # noqa: T201 (pytest -rP shows it)
    assert len(rows) == KERNELS_OF.get(name, 2) * len(ARCHITECTURES)
    for row in rows:
        assert row.spill_bytes == 0, row
        assert row.shared_bytes <= SHARED[89][1], row  # the least of the architectures built for
        assert row.blocks_per_sm >= row.intended_blocks_per_sm, row

"""nvcc compiles every kernel for sm_80 and sm_90 without spills, and an SM holds as many blocks as a tile intends."""

from __future__ import annotations

import shutil

import pytest

from benchmarks.kernel_resources import ARCHITECTURES, KERNELS, SHARED, compile_resources, table

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on PATH: the kernels are not compiled")

#: Kernels in a file where they are not two, one for float16 and one for bfloat16.
KERNELS_OF = {"launch_reference.cu": 3, "launch_split.cu": 3, "launch_direct.cu": 3} | {
    f"launch_{name}.cu": 1
    for name in (
        "simt_128x64", "simt_64x32", "single_simt_64x32", "single_tf32_128x64", "tf32_128x64", "tf32_64x64",
    )
}  # fmt: skip


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

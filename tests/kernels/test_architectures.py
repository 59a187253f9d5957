"""Every kernel compiles without spills for the architectures that test_compile.py leaves out."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks.kernel_resources import KERNELS

ARCHITECTURES = (86, 87, 89, 100, 120)

_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on PATH: the kernels are not compiled")
@pytest.mark.skipif(
    not os.environ.get("TRTKP_EVERY_ARCHITECTURE"),
    reason="minutes of nvcc: `make test-architectures` compiles for sm_86, 87, 89, 100 and 120",
)
@pytest.mark.parametrize("name", sorted(path.name for path in KERNELS.glob("*.cu")))
def test_no_spills(name: str, tmp_path: Path) -> None:
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
    command = ["nvcc", "-std=c++17", "-O3", "-Xptxas", "-v", "-Werror", "all-warnings", *targets, "-c"]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "object"), str(KERNELS / name)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    spills = _SPILLS.findall(done.stderr)
    assert len(spills) >= len(ARCHITECTURES)
    assert set(spills) == {("0", "0")}, done.stderr

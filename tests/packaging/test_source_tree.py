"""That the tools see the mapped folders, and that importing the package stays light."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ["onnxruntime", "polygraphy", "pycuda", "sklearn", "tensorrt", "tensorrt_rtx", "torch"]


@pytest.mark.slow
def test_mypy_finds_an_error_planted_in_each_mapped_folder(tree: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tree, tmp_path / "tree", symlinks=True))
    known = Path(__file__).parents[2] / ".mypy_cache"  # what lint found out about everything else
    if known.is_dir():
        shutil.copytree(known, copy / ".mypy_cache")
    for folder in ["prune", "calib"]:
        (copy / folder / "planted.py").write_text('def planted() -> int:\n    return "text"\n')
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    for folder in ["trtkp/pruning", "trtkp/calib"]:  # the way through the symlink
        assert f"{folder}/planted.py:2: error: Incompatible return value type" in done.stdout


@pytest.mark.parametrize("module", ["trtkp"])
def test_importing_the_package_loads_no_heavy_library(module: str) -> None:
    program = f"import sys, {module}; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []

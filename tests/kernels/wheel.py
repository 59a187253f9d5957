"""The wheel with compiled kernels, whose build is the only one by nvcc in ``make test``.

Its build folder is kept for each state of the CUDA sources, so tests of the wheel and tests of the machine code share
its objects, and a later run compiles nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from filelock import FileLock

from benchmarks.kernels.resources import ARCHITECTURES
from tests.compiled import ROOT, compiled_folder

LAUNCHER = Path(__file__).with_name("recorded_nvcc.py")
SETTINGS = [
    "-C", "cmake.define.TRTKP_WARNINGS_AS_ERRORS=ON",
    "-C", f"cmake.define.CMAKE_CUDA_COMPILER_LAUNCHER={sys.executable};{LAUNCHER}",
]  # fmt: skip


def build_wheel(target: Path) -> Path:
    """The wheel of the checkout with kernels for `ARCHITECTURES`, made by pip; warnings of the compilers are errors."""
    with _locked():
        return _build_wheel(target)


def kept_of(source: Path) -> tuple[str, list[Path]]:
    """What ptxas said of a kernel file as the wheel was built, and its cubins."""
    folder = _folder()
    with _locked():
        if not _built(folder).exists():
            with tempfile.TemporaryDirectory() as target:
                _build_wheel(Path(target))
    (kept,) = (folder / "build").rglob(f"{source.name}.o.kept")
    return (kept / "ptxas.log").read_text(encoding="utf-8"), sorted(kept.glob("*.cubin"))


@cache
def _folder() -> Path:
    sources = [path for path in (ROOT / "plugins").rglob("*") if path.is_file()]
    return compiled_folder("kernels", "nvcc", [SETTINGS, ARCHITECTURES], [ROOT / "CMakeLists.txt", LAUNCHER, *sources])


def _locked() -> FileLock:
    return FileLock(_folder() / "lock")


def _built(folder: Path) -> Path:
    return folder / "built"


def _build_wheel(target: Path) -> Path:
    folder = _folder()
    options = ["--no-build-isolation", "--no-deps", "--wheel-dir", str(target), "-C", f"build-dir={folder / 'build'}"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, *SETTINGS, str(ROOT)],
        env=os.environ
        | {
            "TRTKP_CUDA_ARCHITECTURES": ";".join(map(str, ARCHITECTURES)),
            "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count()),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    _built(folder).touch()
    (wheel,) = target.glob("*.whl")
    return wheel

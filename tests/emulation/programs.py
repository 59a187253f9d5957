"""Compiles the kernel sources as C++ with the emulator, under AddressSanitizer and UBSan, once per test run."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
COMPILER = os.environ.get("CXX", "g++")
#: The status with which the emulator itself ends a program.
FAILURE_STATUS = 70

FLAGS = [
    "-std=c++17", "-O1", "-g1", "-fno-strict-aliasing", "-Wall", "-Wextra", "-Werror",
    "-fsanitize=address,undefined", "-fno-sanitize-recover=all", f"-I{HERE / 'include'}",
]  # fmt: skip

LIBRARY = [
    HERE / "emulator.cpp",
    *sorted((ROOT / "plugins/capi").glob("*.cpp")),
    *sorted((ROOT / "plugins/kernels").glob("*.cu")),
]

#: Program to its sources.
PROGRAMS = {
    "run_conv": [HERE / "run_conv.cpp", *LIBRARY],
    "run_dynamic": [HERE / "run_dynamic.cpp", *LIBRARY],
    "launch_checks": [HERE / "launch_checks.cpp", *LIBRARY],
    "self_test": [HERE / "emulator.cpp", HERE / "self_test.cpp"],
}


def build(program: str, folder: Path) -> Path:
    """The program, compiled into a folder that the processes of a test run may share."""
    if shutil.which(COMPILER) is None:
        pytest.skip(f"no C++ compiler: {COMPILER} is not on PATH")
    target = folder / program
    with FileLock(folder / f"{program}.lock"):
        if not target.exists():
            objects = [_compile(source, folder) for source in PROGRAMS[program]]
            _run([COMPILER, *FLAGS, "-o", str(folder / f"{program}.part"), *map(str, objects)])
            (folder / f"{program}.part").rename(target)
    return target


def run(program: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs a compiled program to its end, whatever that is."""
    return subprocess.run(
        [program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=os.environ | {"ASAN_OPTIONS": "detect_leaks=0"},
    )


def _compile(source: Path, folder: Path) -> Path:
    target = folder / f"{source.name}.o"
    with FileLock(folder / f"{source.name}.lock"):
        if not target.exists():
            part = target.with_suffix(".part")
            _run([COMPILER, *FLAGS, "-x", "c++", "-c", str(source), "-o", str(part)])
            part.rename(target)
    return target


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

"""Compiles the kernel sources as C++ with the emulator, once per test run.

Programs are under AddressSanitizer and UBSan; a shared library with the C interface, for Python, is without them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
COMPILER = os.environ.get("CXX", "g++")
#: The status with which the emulator itself ends a program.
FAILURE_STATUS = 70

COMMON = ["-std=c++17", "-fno-strict-aliasing", "-Wall", "-Wextra", "-Werror", f"-I{HERE / 'include'}"]
FLAGS = [*COMMON, "-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
SHARED_FLAGS = [*COMMON, "-O2", "-fPIC", "-Wno-unused-variable"]  # of the fibers, only sanitizers use all

LIBRARY = [
    HERE / "emulator.cpp",
    *sorted((ROOT / "plugins/capi").glob("*.cpp")),
    *sorted((ROOT / "plugins/kernels").glob("*.cu")),
]

#: The TensorRT plugins; what registers them as it is loaded is a library of its own.
REGISTER = ROOT / "plugins/glue/register.cpp"
GLUE = sorted(set((ROOT / "plugins/glue").glob("*.cpp")) - {REGISTER})

#: Program to its sources.
PROGRAMS = {
    "run_conv": [HERE / "run_conv.cpp", *LIBRARY],
    "run_dynamic": [HERE / "run_dynamic.cpp", *LIBRARY],
    "launch_checks": [HERE / "launch_checks.cpp", *LIBRARY],
    "plugin_host": [ROOT / "tests/glue/plugin_host.cpp", *GLUE, *LIBRARY],
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
            # Plugins look their host's functions up by name.
            _run([COMPILER, *FLAGS, "-rdynamic", "-o", str(folder / f"{program}.part"), *map(str, objects)])
            (folder / f"{program}.part").rename(target)
    return target


def build_library(folder: Path) -> Path:
    """``libtrtkp.so`` with emulated kernels, compiled into a folder that the processes of a test run may share.

    ``libtrtkp_register.so`` stands beside it.
    """
    if shutil.which(COMPILER) is None:
        pytest.skip(f"no C++ compiler: {COMPILER} is not on PATH")
    objects_folder = folder / "shared"
    objects_folder.mkdir(exist_ok=True)
    target = folder / "libtrtkp.so"
    with FileLock(folder / "libtrtkp.lock"):
        if not target.exists():
            sources = [HERE / "library_mark.cpp", *GLUE, *LIBRARY]
            objects = [_compile(source, objects_folder, SHARED_FLAGS) for source in sources]
            part = folder / "libtrtkp.part"
            exports = ["-Wl,--build-id=sha1", "-Wl,-Bsymbolic", f"-Wl,--version-script={ROOT / 'plugins/exports.map'}"]
            _run([COMPILER, "-shared", "-Wl,-soname,libtrtkp.so", *exports, "-o", str(part), *map(str, objects)])
            register = [COMPILER, *SHARED_FLAGS, "-shared", "-x", "c++", str(REGISTER), "-x", "none", str(part)]
            options = [f"-Wl,--version-script={REGISTER.with_suffix('.map')}", "-Wl,-z,nodelete", "-Wl,-rpath,$ORIGIN"]
            _run([*register, *options, "-o", str(folder / "libtrtkp_register.so")])
            part.rename(target)
    return target


def build_live_host(folder: Path) -> Path:
    """The host program of the plugins for a real TensorRT: without sanitizers, which would watch TensorRT, too."""
    if shutil.which(COMPILER) is None:
        pytest.skip(f"no C++ compiler: {COMPILER} is not on PATH")
    target = folder / "live_host"
    with FileLock(folder / "live_host.lock"):
        if not target.exists():
            sources = [ROOT / "tests/glue/plugin_host.cpp", ROOT / "plugins/glue/host.cpp"]
            part = folder / "live_host.part"
            _run([COMPILER, *COMMON, "-O1", "-DTRTKP_LIVE", *map(str, sources), "-o", str(part), "-ldl"])
            part.rename(target)
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


def _compile(source: Path, folder: Path, flags: Sequence[str] = tuple(FLAGS)) -> Path:
    target = folder / f"{source.name}.o"
    with FileLock(folder / f"{source.name}.lock"):
        if not target.exists():
            part = target.with_suffix(".part")
            _run([COMPILER, *flags, "-x", "c++", "-c", str(source), "-o", str(part)])
            part.rename(target)
    return target


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

"""Compiles the kernel sources as C++ with the emulator, once for every state of the sources, compiler and flags.

Programs are under AddressSanitizer and UBSan; a shared library with the C interface, for Python, is without them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest
from filelock import FileLock

from tests.compiled import ROOT
from tests.compiled import compiled_folder as folder_of

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
    *sorted((ROOT / "plugins/kernels/launch").glob("*.cu")),
]

#: The TensorRT plugins; what registers them as it is loaded is a library of its own.
REGISTER = ROOT / "plugins/glue/register.cpp"
GLUE = sorted(set((ROOT / "plugins/glue").glob("*.cpp")) - {REGISTER})
PLUGIN_HOST = ROOT / "tests/glue/plugin_host.cpp"

#: Program to its sources.
PROGRAMS = {
    "run_conv": [HERE / "run_conv.cpp", *LIBRARY],
    "run_dynamic": [HERE / "run_dynamic.cpp", *LIBRARY],
    "launch_checks": [HERE / "launch_checks.cpp", *LIBRARY],
    "plugin_host": [
        PLUGIN_HOST,
        *(PLUGIN_HOST.with_name(f"{name}.cpp") for name in ("orders", "played_registry")),
        *GLUE,
        *LIBRARY,
    ],
    "self_test": [HERE / "emulator.cpp", HERE / "self_test.cpp"],
}
#: Where sources are.
SOURCES = (HERE, ROOT / "tests/glue", ROOT / "plugins")


@cache
def compiled_folder() -> Path:
    """The user's folder for what is compiled from the sources as they are; processes may share it.

    Skips the test that asks where there is no compiler.
    """
    if shutil.which(COMPILER) is None:
        pytest.skip(f"no C++ compiler: {COMPILER} is not on PATH")
    sources = [path for top in SOURCES for path in top.rglob("*") if _is_source(path)]
    return folder_of("emulation", COMPILER, (FLAGS, SHARED_FLAGS), sources)


def build(program: str) -> Path:
    """The program; its objects stand beside it."""
    # Plugins look their host's functions up by name.
    return _linked(compiled_folder() / program, PROGRAMS[program], FLAGS, ["-rdynamic"])


def build_library() -> Path:
    """``libtrtkp.so`` with emulated kernels."""
    folder = compiled_folder() / "shared"
    folder.mkdir(exist_ok=True)
    options = [
        "-shared", "-Wl,-soname,libtrtkp.so", "-Wl,--build-id=sha1", "-Wl,-Bsymbolic",
        f"-Wl,--version-script={ROOT / 'plugins/exports.map'}",
    ]  # fmt: skip
    return _linked(folder / "libtrtkp.so", [HERE / "library_mark.cpp", *GLUE, *LIBRARY], SHARED_FLAGS, options)


def build_stub_host(*, threads: bool = False) -> Path:
    """The program that plays TensorRT with launchers that launch nothing, under ThreadSanitizer where asked for.

    Without it, it shares the objects of the library.
    """
    folder = compiled_folder() / ("threads" if threads else "shared")
    folder.mkdir(exist_ok=True)
    here = [PLUGIN_HOST.with_name(f"{name}.cpp") for name in ("launch_stubs", "played_registry", "stub_host")]
    sources = [*here, *GLUE, HERE / "emulator.cpp", *sorted((ROOT / "plugins/capi").glob("*.cpp"))]
    flags = [*COMMON, "-O1", "-g1", "-fsanitize=thread", "-Wno-unused-variable"] if threads else SHARED_FLAGS
    return _linked(folder / "stub_host", sources, flags, ["-rdynamic"])


def build_register_library() -> Path:
    """``libtrtkp_register.so``, beside ``libtrtkp.so``."""
    library = build_library()
    options = [
        "-shared", str(library), "-Wl,-z,nodelete", "-Wl,-rpath,$ORIGIN",
        f"-Wl,--version-script={REGISTER.with_suffix('.map')}",
    ]  # fmt: skip
    return _linked(library.with_name("libtrtkp_register.so"), [REGISTER], SHARED_FLAGS, options)


def build_played_library(version: int) -> Path:
    """A shared library that plays a TensorRT of this version; a process may load several."""
    folder = compiled_folder() / f"host{version}"
    folder.mkdir(exist_ok=True)
    flags = [*COMMON, "-O1", "-fPIC", "-fvisibility=hidden", f"-DTRTKP_PLAYED_VERSION={version}"]
    return _linked(folder / "libplayed.so", [PLUGIN_HOST.with_name("played_library.cpp")], flags, ["-shared", "-ldl"])


def build_live_host() -> Path:
    """The host program of the plugins for a real TensorRT: without sanitizers, which would watch TensorRT, too."""
    folder = compiled_folder() / "live"
    folder.mkdir(exist_ok=True)
    flags = [*COMMON, "-O1", "-DTRTKP_LIVE"]
    return _linked(folder / "live_host", [PLUGIN_HOST, ROOT / "plugins/glue/host.cpp"], flags, ["-ldl"])


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


def _is_source(path: Path) -> bool:
    return path.suffix in (".cpp", ".cu", ".cuh", ".h", ".inc", ".map")


def _linked(target: Path, sources: Sequence[Path], flags: Sequence[str], options: Sequence[str]) -> Path:
    with FileLock(target.with_suffix(".lock")):
        if not target.exists():
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                objects = list(pool.map(lambda source: _compiled(source, target.parent, flags), sources))
            part = target.with_suffix(".part")
            _run([COMPILER, *flags, "-o", str(part), *map(str, objects), *options])
            part.rename(target)
    return target


def _compiled(source: Path, folder: Path, flags: Sequence[str]) -> Path:
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

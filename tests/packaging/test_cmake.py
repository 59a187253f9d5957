"""How TRTKP_CUDA_ARCHITECTURES is read, and that a request for kernels is never passed over in silence."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.glue.test_exports import declared, exported

ROOT = Path(__file__).parents[2]
CMAKE = Path(sys.executable).with_name("cmake")  # the one that the dev extra installs
NO_SOURCES = "has no CUDA sources to build"
NO_NVCC = "there is no CUDA compiler"
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on PATH: nothing to compile with")


def configure(source: Path, build: Path, *options: str, environment: str | None = None) -> tuple[int, str]:
    """Configure and return the exit status and the output with its line breaks undone."""
    env = {name: value for name, value in os.environ.items() if name != "TRTKP_CUDA_ARCHITECTURES"}
    if environment is not None:
        env["TRTKP_CUDA_ARCHITECTURES"] = environment
    command = [str(CMAKE), "-S", str(source), "-B", str(build), *options]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.returncode, " ".join(done.stdout.split())


@pytest.fixture
def tree_with_kernels(tmp_path: Path) -> Path:
    """The CMake project with a plugins/ folder that reports the architectures handed down to it."""
    source = tmp_path / "source"
    (source / "plugins").mkdir(parents=True)
    shutil.copy(ROOT / "CMakeLists.txt", source)
    (source / "plugins/CMakeLists.txt").write_text('message(STATUS "build for [${CMAKE_CUDA_ARCHITECTURES}]")\n')
    return source


@pytest.mark.parametrize("environment", [None, ""])
def test_nothing_asked_for_configures_and_compiles_nothing(environment: str | None, tmp_path: Path) -> None:
    status, output = configure(ROOT, tmp_path, environment=environment)
    assert status == 0, output
    assert "nothing to compile" in output


@pytest.mark.parametrize("value", ["8.0", "sm_80", "80,89", "80;;90", "80;x", "all;80", "native;80", "0", " ", "OFF"])
def test_a_value_that_is_no_architecture_is_refused(value: str, tmp_path: Path) -> None:
    status, output = configure(ROOT, tmp_path, environment=value)
    assert status != 0
    assert "is not a compute capability" in output
    assert NO_SOURCES not in output


@pytest.mark.parametrize("value", ["80", "80;89;90", "native", "all"])
def test_a_good_value_without_sources_says_so(value: str, tmp_path: Path) -> None:
    shutil.copy(ROOT / "CMakeLists.txt", tmp_path)
    for name, options, environment in [("define", [f"-DTRTKP_CUDA_ARCHITECTURES={value}"], None), ("env", [], value)]:
        status, output = configure(tmp_path, tmp_path / name, *options, environment=environment)
        assert status != 0
        assert NO_SOURCES in output


@pytest.mark.parametrize("value", ["75", "80;70"])
def test_an_architecture_before_the_kernels_is_refused(value: str, tmp_path: Path) -> None:
    status, output = configure(ROOT, tmp_path, environment=value)
    assert status != 0
    assert "need compute capability 8.0 or later" in output


@pytest.fixture
def nvcc_of_another_release(tmp_path: Path) -> Path:
    """An nvcc that lists no code beyond sm_90, as CUDA 12.6 does, and compiles nothing."""
    nvcc = tmp_path / "bin/nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text('#!/bin/sh\n[ "$1" = --list-gpu-code ] && printf "sm_80\\nsm_86\\nsm_87\\nsm_89\\nsm_90\\n"\n')
    nvcc.chmod(0o755)
    return nvcc


def test_an_architecture_that_the_compiler_does_not_know_is_named(
    nvcc_of_another_release: Path, tmp_path: Path
) -> None:
    option = f"-DCMAKE_CUDA_COMPILER={nvcc_of_another_release}"
    status, output = configure(ROOT, tmp_path / "one", option, environment="80;120")
    assert status != 0
    assert re.search(r"names 120, which \S+ does not know\. It knows sm_80 sm_86 sm_87 sm_89 sm_90", output)
    _, output = configure(ROOT, tmp_path / "all", option, environment="all")
    for architecture in (100, 120):
        assert f"left out {architecture}, this nvcc does not know it" in output
    assert "left out 90" not in output


@needs_nvcc
@pytest.mark.slow
def test_all_is_what_this_compiler_knows(tmp_path: Path) -> None:
    status, output = configure(ROOT, tmp_path, environment="all")
    assert status == 0, output
    known = subprocess.run(["nvcc", "--list-gpu-code"], check=True, capture_output=True, text=True).stdout.split()
    wanted = [str(sm) for sm in (80, 86, 87, 89, 90, 100, 110, 120) if f"sm_{sm}" in known]
    assert f"kernels for {' '.join(wanted)} with nvcc" in output


def test_without_a_compiler_it_says_what_to_do(tmp_path: Path) -> None:
    option = "-DCMAKE_CUDA_COMPILER=NOTFOUND"
    status, output = configure(ROOT, tmp_path, option, environment="80")
    assert status != 0
    assert NO_NVCC in output
    assert "Put nvcc on PATH" in output


@pytest.mark.parametrize(
    ("value", "expected"),
    [("80", "80"), ("80;120", "80;120"), ("native", "native"), ("all", "80;86;87;89;90;100;110;120")],
)
def test_the_architectures_reach_the_plugins(
    value: str, expected: str, tree_with_kernels: Path, tmp_path: Path
) -> None:
    status, output = configure(tree_with_kernels, tmp_path / "build", environment=value)
    assert status == 0, output
    assert f"build for [{expected}]" in output


def test_the_define_wins_over_the_environment(tree_with_kernels: Path, tmp_path: Path) -> None:
    option = "-DTRTKP_CUDA_ARCHITECTURES=90"
    status, output = configure(tree_with_kernels, tmp_path / "build", option, environment="80")
    assert status == 0, output
    assert "build for [90]" in output


def test_a_changed_environment_is_seen_in_an_old_build_folder(tree_with_kernels: Path, tmp_path: Path) -> None:
    for value in ["80", "90"]:
        _, output = configure(tree_with_kernels, tmp_path / "build", environment=value)
        assert f"build for [{value}]" in output


_LOAD = """
import ctypes, sys
register, library = sys.argv[1:]
ctypes.CDLL(register)  # finds the other beside it
loaded = ctypes.CDLL(library)
assert loaded.trtkpRegisterPlugins() == 0  # no TensorRT in this process
assert loaded.trtkpConvLaunch(None, 0, None, None) == 1
loaded.trtkpLastError.restype = ctypes.c_char_p
assert loaded.trtkpLastError() == b"desc is null"
"""


@needs_nvcc
@pytest.mark.slow
def test_pip_puts_the_library_into_the_wheel(cuda_wheel: Path, tmp_path: Path) -> None:
    """The library loads without a GPU and shows its own functions only."""
    assert "-py3-none-" in cuda_wheel.name
    assert not cuda_wheel.name.endswith("-any.whl")
    with zipfile.ZipFile(cuda_wheel) as archive:
        names = sorted(name for name in archive.namelist() if name.startswith("trtkp/lib/"))
        assert names == ["trtkp/lib/kernels.json", "trtkp/lib/libtrtkp.so", "trtkp/lib/libtrtkp_register.so"]
        library, register = (Path(archive.extract(name, tmp_path)) for name in names[1:])
    assert exported(library) == declared()
    assert exported(register) == set()
    # a process of its own: in this one other tests may have loaded TensorRT
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, str(register), str(library)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_pip_refuses_a_request_that_it_cannot_meet(tree: Path, tmp_path: Path) -> None:
    command = ["wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", str(tmp_path), str(tree)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *command],
        env=os.environ | {"TRTKP_CUDA_ARCHITECTURES": "75"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "need compute capability 8.0 or later" in " ".join((done.stdout + done.stderr).split())
    assert list(tmp_path.glob("*.whl")) == []

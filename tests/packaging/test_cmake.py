"""How TRTKP_CUDA_ARCHITECTURES is read, and that a request for kernels is never passed over in silence."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CMAKE = Path(sys.executable).with_name("cmake")  # the one that the dev extra installs
NO_SOURCES = "has no CUDA sources to build"


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
    for name, options, environment in [("define", [f"-DTRTKP_CUDA_ARCHITECTURES={value}"], None), ("env", [], value)]:
        status, output = configure(ROOT, tmp_path / name, *options, environment=environment)
        assert status != 0
        assert NO_SOURCES in output


@pytest.mark.parametrize(
    ("value", "expected"),
    [("80", "80"), ("80;120", "80;120"), ("native", "native"), ("all", "80;86;87;89;90;100;120")],
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


def test_pip_refuses_a_request_that_it_cannot_meet(tree: Path, tmp_path: Path) -> None:
    command = ["wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", str(tmp_path), str(tree)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *command],
        env=os.environ | {"TRTKP_CUDA_ARCHITECTURES": "80"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert NO_SOURCES in " ".join((done.stdout + done.stderr).split())
    assert list(tmp_path.glob("*.whl")) == []

"""A copy of the source tree, and what is built from it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from scripts.build_distributions import build_sdist, build_wheel, repair_wheel

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout without what git ignores, so that no test writes into the checkout."""
    copy = tmp_path_factory.mktemp("checkout") / "trtkp"
    ignored = shutil.ignore_patterns(
        ".git", ".*_cache", ".venv", ".hypothesis", "__pycache__", "build", "dist", "*-out"
    )
    return Path(shutil.copytree(ROOT, copy, symlinks=True, ignore=ignored))


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], Path]], Path]:
    """Build into a folder that all test processes share: the first one builds, the others wait and take its file."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def build_once(name: str, build: Callable[[Path], Path]) -> Path:
        with FileLock(shared / f"{name}.lock"):
            target = shared / name
            if not target.exists():
                work = tmp_path_factory.mktemp(name)
                build(work)
                work.rename(target)  # at the end, so that a build that failed leaves nothing to take
            return only_file(target)

    return build_once


@pytest.fixture(scope="session")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel built from the checkout."""
    return build_wheel(tree, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def sdist(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution built from the checkout."""
    return build_sdist(tree, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="session")
def wheel_from_sdist(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel built from the source distribution."""
    return build_wheel(sdist, tmp_path_factory.mktemp("wheel_from_sdist"))


@pytest.fixture(scope="session")
def cuda_wheel(
    tree: Path, once: Callable[[str, Callable[[Path], Path]], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The wheel with kernels for one architecture, warnings as errors, before auditwheel: the one compilation here."""
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc on PATH: nothing to compile with")
    build_folder = tmp_path_factory.mktemp("cuda_build")
    settings = ["cmake.define.TRTKP_WARNINGS_AS_ERRORS=ON", f"build-dir={build_folder}"]
    return once("cuda_wheel", lambda target: build_wheel(tree, target, "80", settings))


@pytest.fixture(scope="session")
def manylinux_wheel(cuda_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel with kernels as it is distributed."""
    return repair_wheel(cuda_wheel, tmp_path_factory.mktemp("manylinux_wheel"))


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path

"""A copy of the source tree, and what is built from it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from scripts.build_distributions import build_sdist, build_wheel, repair_wheel
from tests.kernels import wheel as kernels_wheel

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
def cuda_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel with kernels, warnings as errors, before auditwheel: from the one compilation that all tests share."""
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc on PATH: nothing to compile with")
    return kernels_wheel.build_wheel(tmp_path_factory.mktemp("cuda_wheel"))


@pytest.fixture(scope="session")
def manylinux_wheel(cuda_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel with kernels as it is distributed."""
    return repair_wheel(cuda_wheel, tmp_path_factory.mktemp("manylinux_wheel"))

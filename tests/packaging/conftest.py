"""A copy of the source tree, and what is built from it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
    target = tmp_path_factory.mktemp("sdist")
    program = f"from scikit_build_core.build import build_sdist; build_sdist({str(target)!r})"
    subprocess.run([sys.executable, "-c", program], cwd=tree, check=True, capture_output=True)
    return only_file(target, "*.tar.gz")


@pytest.fixture(scope="session")
def wheel_from_sdist(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel built from the source distribution."""
    return build_wheel(sdist, tmp_path_factory.mktemp("wheel_from_sdist"))


def build_wheel(source: Path, target: Path) -> Path:
    command = ["wheel", "--quiet", "--no-build-isolation", "--no-deps", "--wheel-dir", str(target), str(source)]
    subprocess.run([sys.executable, "-m", "pip", *command], check=True)
    return only_file(target, "*.whl")


def only_file(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path

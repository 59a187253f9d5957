"""What the wheel and the source distribution hold, and that the wheel works away from the checkout."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pytest

import trtkp


def modules(tree: Path) -> set[str]:
    """The wheel paths of every Python file in the checkout's three package folders."""
    mapping = {"trtkp": "trtkp", "prune": "trtkp/pruning", "calib": "trtkp/calib"}
    return {
        f"{target}/{path.relative_to(tree / folder).as_posix()}"
        for folder, target in mapping.items()
        for path in (tree / folder).rglob("*.py")
        if not any(parent.is_symlink() for parent in path.parents)
    }


def test_module_walk_sees_each_folder(tree: Path) -> None:
    assert {"trtkp/__init__.py", "trtkp/pruning/__init__.py", "trtkp/calib/__init__.py"} <= modules(tree)


@pytest.mark.parametrize("built", ["wheel", "wheel_from_sdist"])
def test_wheel_holds_every_module_once_and_nothing_else(built: str, tree: Path, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(built)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    assert [name for name, count in Counter(names).items() if count > 1] == []
    assert {name for name in names if name.endswith(".py")} == modules(tree)
    assert {name.split("/")[0] for name in names} == {"trtkp", f"trtkp-{trtkp.__version__}.dist-info"}
    assert "trtkp/py.typed" in names


@pytest.mark.parametrize("built", ["wheel", "wheel_from_sdist"])
def test_wheel_without_kernels_is_pure(built: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(built)
    assert path.name == f"trtkp-{trtkp.__version__}-py3-none-any.whl"


def test_both_wheels_hold_the_same_files(wheel: Path, wheel_from_sdist: Path) -> None:
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(wheel_from_sdist) as second:
        contents = [{i.filename: i.CRC for i in archive.infolist()} for archive in (first, second)]
    assert contents[0] == contents[1]


def test_sdist_holds_sources_and_no_links(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    assert [m.name for m in members if m.issym() or m.islnk()] == []
    names = {m.name.split("/", 1)[1] for m in members}
    assert {"CMakeLists.txt", "LICENSE", "calib/__init__.py", "prune/__init__.py", "pyproject.toml"} <= names
    assert {"plugins/CMakeLists.txt", "plugins/capi/trtkp.h", "plugins/kernels/launch/mma.cu"} <= names
    assert [name for name in names if name.startswith(("trtkp/pruning", "trtkp/calib", ".git/", ".venv"))] == []


def test_installed_wheel_imports_away_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    command = ["install", "--quiet", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *command], check=True)
    # -S leaves out the hook of the checkout's editable install; the libraries come back as a plain folder.
    path = [str(site), sysconfig.get_path("purelib")]
    program = (
        f"import sys; sys.path += {path!r}; import trtkp, trtkp.pruning, trtkp.calib\n"
        "print(*(m.__file__ for m in (trtkp, trtkp.pruning, trtkp.calib)), sep='\\n')"
    )
    output = subprocess.run(
        [sys.executable, "-S", "-c", program], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout
    expected = [site / "trtkp/__init__.py", site / "trtkp/pruning/__init__.py", site / "trtkp/calib/__init__.py"]
    assert [Path(line) for line in output.splitlines()] == expected

"""Each distribution, installed into an environment of its own, away from the checkout, and used there."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.tags import sys_tags
from packaging.utils import parse_wheel_filename

PROGRAM = Path(__file__).with_name("installed.py")


def environment(folder: Path) -> Path:
    """A virtual environment that sees the libraries of this one, and not its trtkp; its Python.

    A .pth file adds the folders to the end of the path, and the .pth files inside them, such as the one of the
    checkout's editable install, are not read.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    libraries = [path for path in sys.path if Path(path).name in {"site-packages", "dist-packages"}]
    (site / "libraries.pth").write_text("\n".join(libraries), encoding="utf-8")
    return folder / "bin/python"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("built", "kind"), [("sdist", "pure"), ("wheel_from_sdist", "pure"), ("manylinux_wheel", "cuda")]
)
def test_an_installed_distribution_builds_a_bundle(
    built: str, kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    artefact: Path = request.getfixturevalue(built)
    python = environment(tmp_path / "env")
    outside = {
        name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "TRTKP_CUDA_ARCHITECTURES"}
    }
    # --ignore-installed: pip would otherwise find the checkout's trtkp, of the same version, among the libraries.
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    for command in (
        [python, *install, "--ignore-installed", str(artefact)],
        [python, str(PROGRAM), kind],
    ):
        done = subprocess.run(command, cwd=tmp_path, env=outside, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "a bundle was built, and its engine verified" in done.stdout


@pytest.mark.slow
def test_the_repaired_wheel_is_the_same_files_under_a_manylinux_tag(cuda_wheel: Path, manylinux_wheel: Path) -> None:
    *_, tags = parse_wheel_filename(manylinux_wheel.name)
    assert all(tag.platform.startswith("manylinux_2_") for tag in tags)
    assert tags & set(sys_tags()), "the tag must admit the machine that built the wheel"
    contents = []
    for path in (cuda_wheel, manylinux_wheel):
        with zipfile.ZipFile(path) as archive:
            contents.append({i.filename: i.CRC for i in archive.infolist() if is_content(i)})
    # the build ID in libtrtkp.so is in TensorRT's timing caches: the libraries must not be rewritten
    assert contents[0] == contents[1]


def is_content(entry: zipfile.ZipInfo) -> bool:
    """The tag stands in the metadata, and auditwheel adds entries for folders."""
    return not entry.is_dir() and ".dist-info/" not in entry.filename

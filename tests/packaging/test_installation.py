"""Each distribution, installed into an environment of its own, away from the checkout, and used there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.tags import sys_tags
from packaging.utils import parse_wheel_filename

from tests.packaging.declared import ROOT, declared, link_libraries

PROGRAM = Path(__file__).with_name("installed.py")


def environment(folder: Path) -> Path:
    """A virtual environment with the libraries that trtkp's `dependencies` bring, and no other; its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    link_libraries(site, declared())
    return folder / "bin/python"


#: Import every module; print the library that each import lacked, by module.
IMPORT_ALL = """
import importlib, json, sys
from pathlib import Path
root = Path(sys.argv[1])
sys.path[:0] = sys.argv[1:]
lacking = {}
for folder, package in (("trtkp", "trtkp"), ("prune", "trtkp.pruning"), ("calib", "trtkp.calib")):
    for file in sorted((root / folder).rglob("*.py")):
        module = ".".join([package, *(part for part in file.relative_to(root / folder).with_suffix("").parts)])
        try:
            if file.name != "__main__.py":
                importlib.import_module(module.removesuffix(".__init__"))
        except ModuleNotFoundError as error:
            lacking[module] = error.name
print(json.dumps(lacking))
"""
#: What only an extra installs, and the package that may import it at once: each is imported when it is used.
EXTRAS_ALONE = {
    "trtkp.comparison.report.": {"plotly"},
    "trtkp.serving.": {
        "aiohttp",
        "google",
        "grpc",
        "h2",
        "prometheus_client",
        "ray",
        "starlette",
        "tritonclient",
        "uvicorn",
    },
}


def test_modules_import_with_the_declared_dependencies_alone(tmp_path: Path) -> None:
    link_libraries(tmp_path, declared())
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", IMPORT_ALL, str(ROOT), str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lacking = json.loads(done.stdout.splitlines()[-1])
    assert "trtkp.serving.protocol.rpc" in lacking  # the libraries of extras are indeed out of reach
    allowed = {
        module: library
        for module, library in lacking.items()
        for package, libraries in EXTRAS_ALONE.items()
        if module.startswith(package) and library.split(".")[0] in libraries
    }
    assert lacking == allowed


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
    # pip and what builds the sdist are this environment's: they are on the path while it installs, and not after
    tools = [path for path in sys.path if Path(path).name in {"site-packages", "dist-packages"}]
    for command, path in (
        ([python, *install, "--ignore-installed", str(artefact)], tools),
        ([python, str(PROGRAM), kind], []),
    ):
        env = outside | ({"PYTHONPATH": os.pathsep.join(path)} if path else {})
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
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

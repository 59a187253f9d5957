"""The workflows and the files about the project agree with the package; `make lint` checks them against schemas."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import trtkp

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actionlint_finds_nothing(path: Path) -> None:
    program = shutil.which("actionlint")
    if program is None:
        pytest.skip(
            "actionlint is not on PATH: its packages fetch a binary from elsewhere, so nothing here installs it"
        )
    done = subprocess.run([program, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("architecture", ["x86_64", "aarch64"])
def test_cibuildwheel_builds_one_wheel_for_every_python(architecture: str) -> None:
    command = [sys.executable, "-m", "cibuildwheel", "--platform", "linux", "--archs", architecture]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CIBW_")}
    done = subprocess.run(
        [*command, "--print-build-identifiers", str(ROOT)], env=clean, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [f"cp311-manylinux_{architecture}"]


def test_ci_runs_on_every_python_that_the_package_claims() -> None:
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["classifiers"]
    claimed = {found[1] for line in classifiers if (found := re.search(r":: (3\.\d+)$", line))}
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]
    tested = set(jobs["test"]["strategy"]["matrix"]["python"])
    tested |= {str(step["with"]["python-version"]) for step in jobs["check"]["steps"] if "python-version" in
               step.get("with", {})}  # fmt: skip
    assert tested == claimed


def test_changelog_and_citation_name_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## \[([\d.]+)\]", changelog, re.MULTILINE)
    assert newest is not None
    assert newest[1] == trtkp.__version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == trtkp.__version__

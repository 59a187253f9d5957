"""The program behind `make wheel`: what it says where a tool is missing, and what it leaves in the output folder."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

from scripts import build_distributions
from scripts.build_distributions import BuildError, check_tools, main, repair_wheel


def test_without_nvcc_the_other_two_are_built(
    tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build_distributions, "ROOT", tree)
    monkeypatch.setenv("CUDACXX", str(tmp_path / "nvcc"))
    (tmp_path / "trtkp-0.0.1.tar.gz").touch()
    (tmp_path / "notes.txt").touch()
    assert main(["--output", str(tmp_path)]) == 0
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        "notes.txt",
        f"trtkp-{build_version(tree)}-py3-none-any.whl",
        f"trtkp-{build_version(tree)}.tar.gz",
    ]
    assert "no CUDA wheel: it needs Linux and nvcc" in capsys.readouterr().out


def build_version(tree: Path) -> str:
    namespace: dict[str, str] = {}
    exec((tree / "trtkp/version.py").read_text(encoding="utf-8"), namespace)  # noqa: S102
    return namespace["__version__"]


@pytest.mark.parametrize("missing", ["auditwheel", "cmake", "scikit_build_core"])
def test_a_missing_package_is_named_before_anything_is_built(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    monkeypatch.setattr(build_distributions, "find_nvcc", lambda: "/opt/cuda/bin/nvcc")
    monkeypatch.setattr(sys, "platform", "linux")
    assert main(["--output", str(tmp_path / "dist")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"make wheel: {missing.replace('_', '-')} is not installed")
    assert not (tmp_path / "dist").exists()


@pytest.mark.parametrize(("missing", "message"), [("patchelf", "needs patchelf"), ("c++", "needs a C\\+\\+ compiler")])
def test_a_missing_program_is_named(missing: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None if name == missing else f"/usr/bin/{name}")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    check_tools(cuda=False)
    with pytest.raises(BuildError, match=message):
        check_tools(cuda=True)


def test_a_library_that_auditwheel_copies_in_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def graft(command: list[str], **_: str) -> None:
        target = Path(command[command.index("--wheel-dir") + 1])
        with zipfile.ZipFile(target / "trtkp-0.2.0-py3-none-manylinux_2_28_x86_64.whl", "w") as archive:
            archive.writestr("trtkp.libs/libcuda-1a2b3c4d.so.1", b"")

    monkeypatch.setattr(build_distributions, "_run", graft)
    with pytest.raises(BuildError, match=r"copied libcuda-1a2b3c4d\.so\.1 into it"):
        repair_wheel(tmp_path / "trtkp-0.2.0-py3-none-linux_x86_64.whl", tmp_path)

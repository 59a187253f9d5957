"""Our declarations of TensorRT's interfaces against the real headers, wherever those are.

``TRTKP_TENSORRT_HEADERS`` names folders with NvInferRuntime.h, separated by colons, beside ``TENSORRT_ROOT``. What the
last run over several versions found is in headers.json; ``python -m tests.glue.test_headers`` writes it anew.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.emulation.programs import COMPILER, GLUE

HERE = Path(__file__).parent
RECORD = HERE / "headers.json"
#: The versions that one build must fit.
VERSIONS = ("10.0", "10.8", "10.13", "10.16", "11.0", "11.1")
#: Lines of an interface whose layout depends on the version.
_LAYOUT = re.compile(r"^(1[01]) ")


def header_folders() -> list[Path]:
    """Where real headers are."""
    named = [Path(name) for name in os.environ.get("TRTKP_TENSORRT_HEADERS", "").split(":") if name]
    root = os.environ.get("TENSORRT_ROOT")
    return [folder for folder in [*named, *([Path(root) / "include"] if root else [])] if folder.is_dir()]


def cuda_include() -> Path | None:
    """The folder of cuda_runtime_api.h, which the real headers include."""
    nvcc = shutil.which("nvcc")
    places = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include"]
    places += [Path(nvcc).resolve().parents[1] / "include"] if nvcc else []
    return next((place for place in places if (place / "cuda_runtime_api.h").is_file()), None)


def table(folder: Path, headers: Path | None = None) -> list[str]:
    """The lines of abi_table, compiled in a folder with the real headers or with ours."""
    options = []
    if headers is not None:
        cuda = cuda_include()
        assert cuda is not None
        options = ["-w", "-DTRTKP_TENSORRT_HEADERS", "-isystem", str(headers), "-isystem", str(cuda)]
    program = folder / "abi_table"
    command = [COMPILER, "-std=c++17", *options, str(HERE / "abi_table.cpp"), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines()


def compared(folder: Path, headers: Path) -> tuple[str, list[str], int]:
    """Version of the headers, differing lines, and the number of lines that agree."""
    *real, last = table(folder, headers)
    version = last.removeprefix("version: ")
    major = version.split(".")[0]
    ours = [line for line in table(folder) if (layout := _LAYOUT.match(line)) is None or layout[1] == major]
    return version, sorted(set(real) ^ set(ours)), len(set(real) & set(ours))


needs_headers = pytest.mark.skipif(
    not header_folders() or cuda_include() is None or shutil.which(COMPILER) is None,
    reason="no real headers of TensorRT (TRTKP_TENSORRT_HEADERS, TENSORRT_ROOT), or no CUDA headers or C++ compiler",
)


@needs_headers
@pytest.mark.parametrize("headers", header_folders(), ids=str)
def test_declarations_are_the_real_ones(headers: Path, tmp_path: Path) -> None:
    version, differences, same = compared(tmp_path, headers)
    assert differences == [], version
    assert same > 140


@needs_headers
@pytest.mark.parametrize("source", ["plugin.cpp", "creator.cpp", "host.cpp"])
def test_the_plugins_compile_with_real_headers(source: str, tmp_path: Path) -> None:
    (path,) = [path for path in GLUE if path.name == source]
    for headers in header_folders():
        options = ["-DTRTKP_TENSORRT_HEADERS", "-isystem", str(headers), "-isystem", str(cuda_include())]
        command = [COMPILER, "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", *options, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{headers}: {done.stderr}"


@needs_headers
def test_the_program_of_the_documents_compiles_with_real_headers() -> None:
    source = Path(__file__).parents[2] / "examples" / "deploy" / "run_engine.cpp"
    for headers in header_folders():
        options = ["-Wno-deprecated-declarations", "-isystem", str(headers), "-isystem", str(cuda_include())]
        command = [COMPILER, "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", *options, str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{headers}: {done.stderr}"


@pytest.mark.skipif(shutil.which(COMPILER) is None, reason="no C++ compiler")
def test_the_record_is_of_these_declarations(tmp_path: Path) -> None:
    """A change of a declaration needs a new run over the real headers."""
    record = json.loads(RECORD.read_text())
    assert record["table"] == table(tmp_path)
    assert [".".join(v["version"].split(".")[:2]) for v in record["versions"]] == list(VERSIONS)
    assert all(v["differences"] == [] and v["same"] > 140 for v in record["versions"])


def main() -> None:
    """Compares with every version that is installed and writes the record."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        versions = []
        for headers in header_folders():
            version, differences, same = compared(folder, headers)
            versions.append({"version": version, "same": same, "differences": differences})
        compiler = subprocess.run([COMPILER, "--version"], capture_output=True, text=True, check=True).stdout
        record = {
            "date": dt.datetime.now(dt.UTC).date().isoformat(),
            "compiler": compiler.splitlines()[0],
            "versions": versions,
            "table": table(folder),
        }
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    sys.stdout.write("".join(f"{v['version']}: {len(v['differences'])} differences\n" for v in versions))


if __name__ == "__main__":
    main()

"""The binding: structures as the header has them, versions and files checked at load, errors with a remedy."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import trtkp.kernels.capi as binding
from trtkp.errors import InputError
from trtkp.kernels.capi import INTERFACE_VERSION, ConvDesc, ConvTensors, Library, find_library
from trtkp.kernels.layer import ACTIVATIONS, BASES

HEADER = Path(__file__).parents[2] / "plugins/capi/trtkp.h"
COMPILER = shutil.which("cc") or shutil.which("gcc")


def members(struct: str) -> list[str]:
    """The fields of a structure of the header, in order."""
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
    body = re.search(rf"typedef struct {struct}\s*\{{(.*?)\}} {struct};", text, re.DOTALL)
    assert body is not None
    fields = [name.strip() for line in body[1].split(";") for name in line.split(",") if name.strip()]
    return [re.findall(r"\w+", field)[-1] for field in fields]


@pytest.mark.parametrize(("struct", "mirror"), [("trtkpConvDesc", ConvDesc), ("trtkpConvTensors", ConvTensors)])
@pytest.mark.skipif(COMPILER is None, reason="no C compiler on PATH: the header cannot be asked for its layout")
def test_structures_are_those_of_the_header(struct: str, mirror: type, tmp_path: Path) -> None:
    names = [name for name, *_ in mirror._fields_]
    assert names == members(struct)
    lines = "".join(f'printf("%zu\\n", offsetof({struct}, {name}));' for name in names)
    source = tmp_path / "layout.c"
    source.write_text(
        f'#include "{HEADER}"\n#include <stdio.h>\nint main(void) {{ {lines} printf("%zu\\n", sizeof({struct})); }}\n'
    )
    subprocess.run([str(COMPILER), str(source), "-o", str(tmp_path / "layout")], check=True)
    printed = subprocess.run([str(tmp_path / "layout")], check=True, capture_output=True, text=True).stdout.split()
    import ctypes

    assert list(map(int, printed)) == [getattr(mirror, name).offset for name in names] + [ctypes.sizeof(mirror)]


def test_numbers_are_those_of_the_header() -> None:
    text = HEADER.read_text()
    assert f"#define TRTKP_INTERFACE_VERSION {INTERFACE_VERSION}\n" in text
    kinds = dict(re.findall(r"TRTKP_(CHANNELS|TAPS|ENTRIES) = (\d+)", text))
    assert kinds == {name: str(i) for i, name in enumerate(("CHANNELS", "TAPS", "ENTRIES"))}
    assert len(BASES) == len(kinds)
    found = re.search(r"TRTKP_NO_ACTIVATION = 0,(.*?)\}", text, re.DOTALL)
    assert found is not None
    names = [name.replace("_", "").lower() for name in re.findall(r"TRTKP_(\w+) = ", found[1])]
    assert names == [name.lower() for name in ACTIVATIONS[1:]]


def test_tactics_are_asked_of_the_library(library: Library) -> None:
    declared = re.findall(r"TRTKP_TACTIC_(\w+) = (\d+)", HEADER.read_text())
    numbers = {name.lower(): int(number) for name, number in declared if not name.startswith(("COUNT", "DYNAMIC"))}
    assert library.tactic_numbers == numbers
    assert library.emulated
    with pytest.raises(InputError, match="tactic wmma: not known; use one of reference, "):
        library.number("wmma")


def compile_library(folder: Path, code: str) -> Path:
    source = folder / "library.c"
    source.write_text(code)
    target = folder / "libother.so"
    subprocess.run([str(COMPILER), "-shared", "-fPIC", str(source), "-o", str(target)], check=True)
    return target


@pytest.mark.skipif(COMPILER is None, reason="no C compiler on PATH: no foreign library to load")
def test_a_foreign_library_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no library of trtkp"):
        Library(compile_library(tmp_path, "int other(void) { return 1; }"))
    with pytest.raises(InputError, match=f"interface version 99, this trtkp needs {INTERFACE_VERSION}; build it"):
        Library(compile_library(tmp_path / "..", "unsigned trtkpInterfaceVersion(void) { return 99; }"))


def test_a_file_that_is_no_library_is_refused(tmp_path: Path) -> None:
    (tmp_path / "libtrtkp.so").write_text("not ELF")
    with pytest.raises(InputError, match=r"libtrtkp.so: cannot be loaded: .*; build it with TRTKP_CUDA_ARCHITECTURES"):
        Library(tmp_path / "libtrtkp.so")


def test_where_the_library_is_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "trtkp"
    monkeypatch.setattr(binding, "_PACKAGE", package)
    monkeypatch.delenv("TRTKP_LIBRARY", raising=False)
    with pytest.raises(InputError, match="the compiled kernels, is not installed; build it with TRTKP_CUDA") as raised:
        find_library()
    assert "\n" not in str(raised.value)

    built = [tmp_path / "build/gpu/plugins/libtrtkp.so", package / "lib/libtrtkp.so", tmp_path / "mine.so"]
    for path in built:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (package / "lib/libtrtkp.so").rename(tmp_path / "aside.so")
    with pytest.raises(InputError, match="is not installed"):
        find_library()  # a build folder counts beside the sources only
    (tmp_path / "plugins").mkdir()
    assert find_library() == built[0]
    (tmp_path / "aside.so").rename(built[1])
    assert find_library() == built[1]
    monkeypatch.setenv("TRTKP_LIBRARY", str(built[2]))
    assert find_library() == built[2]
    monkeypatch.setenv("TRTKP_LIBRARY", str(tmp_path / "nothing.so"))
    with pytest.raises(InputError, match=r"nothing.so: TRTKP_LIBRARY names no file; correct or unset it"):
        find_library()

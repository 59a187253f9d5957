"""What the two libraries show and need."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.emulation.programs import ROOT

HEADERS = {
    "plugins/capi/trtkp.h": r"^\s*TRTKP_API [^;(]*?(\w+)\(",
    "plugins/glue/entry.h": r"^TRTKP_ENTRY [^;(]*?(\w+)\(",
}


def declared() -> set[str]:
    """The functions of the C interface and the entry points."""
    return {
        name
        for path, pattern in HEADERS.items()
        for name in re.findall(pattern, (ROOT / path).read_text(), re.MULTILINE)
    }


def exported(library: Path) -> set[str]:
    """The symbols that a library defines for others."""
    command = ["nm", "-D", "--defined-only", "--format=posix", library]
    return {
        line.split()[0]
        for line in subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    }


def dynamic(library: Path) -> str:
    """The dynamic section."""
    return subprocess.run(["readelf", "-d", library], check=True, capture_output=True, text=True).stdout


def test_symbols(libraries: Path) -> None:
    assert {"getCreators", "setLoggerFinder", "trtkpRegisterPlugins", "trtkpConvLaunch"} <= declared()
    assert exported(libraries / "libtrtkp.so") == {*declared(), "trtkpEmulated"}
    assert exported(libraries / "libtrtkp_register.so") == set()


def test_nothing_of_tensorrt_is_linked(libraries: Path) -> None:
    needed = {name: re.findall(r"NEEDED.*\[(.*?)\.so", dynamic(libraries / name)) for name in
              ("libtrtkp.so", "libtrtkp_register.so")}  # fmt: skip
    system = {"libc", "libm", "libdl", "libstdc++", "libgcc_s", "ld-linux-x86-64", "libpthread"}
    assert set(needed["libtrtkp.so"]) <= system
    assert set(needed["libtrtkp_register.so"]) <= {*system, "libtrtkp"}
    assert "libtrtkp" in needed["libtrtkp_register.so"]


def test_libtrtkp_has_no_constructor_of_its_own_and_the_other_stays(libraries: Path) -> None:
    """TensorRT refuses a library whose constructor has registered, and a registry keeps pointers to creators."""
    assert "NODELETE" in dynamic(libraries / "libtrtkp_register.so")
    assert "NODELETE" not in dynamic(libraries / "libtrtkp.so")
    sources = "".join(path.read_text() for path in (ROOT / "plugins/glue").glob("*.cpp") if path.name != "register.cpp")
    assert "trtkpRegisterPlugins()" in sources
    assert sources.count("trtkpRegisterPlugins()") == 1  # its definition

"""Several TensorRTs in one process: each is called by its own layouts, and told what concerns it."""

from __future__ import annotations

import subprocess
import sys
from itertools import permutations
from pathlib import Path

import pytest

from tests.emulation.programs import build_played_library

#: Versions that are known: TensorRT 10 and 11, and TensorRT-RTX.
KNOWN = (101600, 110400, 10701)
#: Versions whose layouts nobody has seen: the next TensorRT, an old one, an old TensorRT-RTX and the next.
UNKNOWN = (120000, 8601, 10500, 20000)
OPERATORS = 84

#: Loads played libraries, then has each load the plugins, then has each make a mistake.
PLAY = """
import ctypes, sys
plugins, *hosts = sys.argv[1:]
hosts = [ctypes.CDLL(path) for path in hosts]
for host in hosts:
    host.playLoad(plugins.encode())
for host in hosts:
    host.playCreate()
"""

#: The same with the function that registers the plugins with every TensorRT.
REGISTER = """
import ctypes, sys
plugins, *hosts = sys.argv[1:]
hosts = [ctypes.CDLL(path) for path in hosts]
print("registries", ctypes.CDLL(plugins).trtkpRegisterPlugins(), flush=True)
for host in hosts:
    if host.getInferLibVersion() in (101600, 110400):
        host.playCreate()
"""


def played(script: str, libraries: Path, *versions: int) -> tuple[list[str], str]:
    """What a process with these hosts, in this order, prints: lines of stdout, and stderr."""
    command: list[str | Path] = [sys.executable, "-c", script, libraries / "libtrtkp.so"]
    command += map(build_played_library, versions)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"{done.returncode}: {done.stdout}\n{done.stderr}"
    return done.stdout.splitlines(), done.stderr


def mistake(version: int, *, finder: bool) -> list[str]:
    """What a host is told of the mistake, through its own finder, logger and recorder."""
    message = "StripeConv node: there is no field collection"
    layout = 10 if 100000 <= version < 110000 else 11
    found = [f"{version} finder {layout}"] if finder else []
    return [*found, f"{version} log 1 [trtkp] {message}", f"{version} recorded 3 {message}"]


@pytest.mark.parametrize("versions", list(permutations(KNOWN, 2)))
def test_two_hosts_in_either_order(versions: tuple[int, int], libraries: Path) -> None:
    output, errors = played(PLAY, libraries, *versions)
    loads = [f"{version} creators {OPERATORS}" for version in versions]
    assert output == loads + [line for version in versions for line in mistake(version, finder=True)]
    assert errors == ""


@pytest.mark.parametrize("versions", list(permutations(KNOWN, 3)))
def test_registering_with_every_host(versions: tuple[int, ...], libraries: Path) -> None:
    """TensorRT-RTX, which cannot run plugins, is told so by its own logger."""
    output, errors = played(REGISTER, libraries, *versions)
    assert "10701 log 2 [trtkp] plugins are not registered with TensorRT-RTX, which cannot run them" in output
    assert "registries 2" in output
    told = [line for version in versions if version != 10701 for line in mistake(version, finder=False)]
    assert output[-len(told) :] == told
    assert errors == ""


@pytest.mark.parametrize("unknown", UNKNOWN)
def test_nothing_of_an_unknown_version_is_called(unknown: int, libraries: Path) -> None:
    script = PLAY.replace("for host in hosts:\n    host.playCreate()", "hosts[-1].playCreate()")
    output, errors = played(script, libraries, unknown, 110400)
    assert output == [f"{unknown} creators 0", f"110400 creators {OPERATORS}", *mistake(110400, finder=True)]
    assert errors.count(f"[trtkp] a TensorRT of version number {unknown} is loaded, which this library does not") == 1
    output, errors = played(REGISTER, libraries, unknown, 101600)
    assert output == ["registries 1", *mistake(101600, finder=False)]
    assert errors.count(f"version number {unknown}") == 1

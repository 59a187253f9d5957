"""Boards by the files that their system has."""

from __future__ import annotations

from pathlib import Path

import pytest

from trtkp.engine import doctor
from trtkp.machine.jetson import Jetson, find_jetson

RELEASE = "# R{}, REVISION: {}, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025\n"


def board(root: Path, release: str, model: bytes = b"") -> Path:
    for name, content in (("etc/nv_tegra_release", release.encode()), ("proc/device-tree/model", model)):
        if content:
            (root / name).parent.mkdir(parents=True)
            (root / name).write_bytes(content)
    return root


@pytest.mark.parametrize(
    ("release", "model", "expected", "status", "words"),
    [
        ("36 (release)", b"NVIDIA Jetson AGX Orin Developer Kit\0", ("36.4.3", 6), "ok", "trtexec"),
        ("38 (release)", b"NVIDIA Jetson AGX Thor Developer Kit\0", ("38.4.3", 7), "ok", "SBSA"),
        ("35 (release)", b"NVIDIA Jetson Xavier NX\0", ("35.4.3", 5), "unavailable", "35.4.3"),
        ("99 (release)", b"", ("99.4.3", None), "unavailable", "unknown board"),
        ("something else", b"\xff\xfeJetson\0", ("", None), "unavailable", "Jetson"),
    ],
)
def test_boards(
    tmp_path: Path, release: str, model: bytes, expected: tuple[str, int | None], status: str, words: str
) -> None:
    found = find_jetson(board(tmp_path, RELEASE.format(release, "4.3"), model))
    assert found is not None
    assert (found.linux, found.jetpack) == expected
    [finding] = doctor._jetson(tmp_path)  # what the command prints on such a board
    assert finding.status == status
    assert words in finding.detail
    assert (finding.remedy is None) == (found.jetpack == 7)


def test_other_machines(tmp_path: Path) -> None:
    assert find_jetson(tmp_path) is None
    assert find_jetson(board(tmp_path, "", b"Raspberry Pi 5\0")) is None
    assert doctor._jetson(tmp_path) == []


def test_board_without_a_release(tmp_path: Path) -> None:
    assert find_jetson(board(tmp_path, "", b"NVIDIA Jetson Orin Nano\0")) == Jetson("NVIDIA Jetson Orin Nano", "", None)

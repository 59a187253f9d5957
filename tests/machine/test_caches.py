"""Files of caches: whatever lies in their place, they are read within bounds or refused at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from trtkp.machine.caches import read_cache, set_aside, write_cache

ODD: dict[str, Callable[[Path], object]] = {
    "endless": lambda path: path.symlink_to("/dev/zero"),
    "fifo": os.mkfifo,
    "directory": Path.mkdir,
    "large": lambda path: path.write_bytes(bytes(101)),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_files_are_refused_and_set_aside(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "times"
    ODD[kind](path)
    with pytest.raises(ValueError, match="larger than 100 bytes" if kind == "large" else "not a regular file"):
        read_cache(path, 100)
    assert set_aside(path) == "set aside as times.bad"
    assert not os.path.lexists(path)
    with pytest.raises(FileNotFoundError):
        read_cache(path, 100)
    assert set_aside(path) == "ignored"  # another process has done it


def test_written_files_are_read_through_links(tmp_path: Path) -> None:
    write_cache(tmp_path / "times", b"1 2 3")
    (tmp_path / "link").symlink_to(tmp_path / "times")
    assert read_cache(tmp_path / "link", 5) == b"1 2 3"
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["link", "times"]
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_cache(tmp_path / "folder", b"x")
    assert not list(tmp_path.glob("*.part"))


def test_parts_of_killed_builds_are_removed(tmp_path: Path) -> None:
    old, young = tmp_path / ".trtkp-1-aa.part", tmp_path / ".trtkp-2-bb.part"
    for part in (old, young):
        part.write_bytes(b"x")
    os.utime(old, (0, 0))
    write_cache(tmp_path / "times", b"content")
    assert sorted(path.name for path in tmp_path.iterdir()) == [young.name, "times"]
